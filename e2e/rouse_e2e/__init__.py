"""Real clusters for Rouse's end-to-end tests and its demo, without Docker or a registry."""
