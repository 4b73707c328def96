"""Values that users give, and the types that annotations want; no pipeline is known here."""
