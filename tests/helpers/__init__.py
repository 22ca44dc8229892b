"""What several test modules share: small parts, settings, sources, servers, runs and processes."""
