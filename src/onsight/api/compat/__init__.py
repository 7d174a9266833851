"""Routes of the servers that Onsight replaces, a file each: their clients change the address and nothing else."""
