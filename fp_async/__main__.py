"""`python -m fp_async` is the `flowerpower` command."""

from fp_async.cli import main

main()
