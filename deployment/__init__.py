"""From a verdict to production: registry, promotion ledger, roll-out and the serving tier."""
