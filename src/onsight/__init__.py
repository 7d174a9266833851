"""Onsight: one self-hosted server that shows images to open vision-language models."""

__version__ = "0.1.0"
