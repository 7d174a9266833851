"""The same server under other people's roofs: what a host hands over becomes a request to it, and nothing else."""
