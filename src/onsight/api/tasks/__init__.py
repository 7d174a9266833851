"""The vision tasks: caption, ocr, locate, describe."""
