"""Every verb, one file each; the only caller of engines."""
