"""The serving tier: one plain ASGI process a replica, which follows the release document."""
