import shutil, anyio
from test_edge import *
async def test_readmit(edge, tmp_path):
    await edge.agent("pi-7")
    other = tmp_path / "devices" / "other"
    shutil.copytree(edge.device("pi-7") / "pipelines", other / "pipelines")
    edge.flock.spawn("ghost",[*(AGENT, "run", "--broker", f"mqtt://127.0.0.1:{edge.broker.port}"),*("--name", "pi-7", "--project", str(other))])
    with anyio.fail_after(40):
        while (await edge.project.agents())[0].state != "quarantined": await anyio.sleep(0.2)
    edge.flock.stop("ghost")
    await anyio.sleep(3)
    await edge.project.readmit_agent("pi-7")
    for i in range(16):
        (a,) = await edge.project.agents(); print(i, a.state, a.problem); await anyio.sleep(1)
    assert 0
