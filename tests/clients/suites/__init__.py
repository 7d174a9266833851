"""What runs in the clients' own environments, where nothing of Onsight is installed."""
