"""What is known of each model family, as data, and where its files are."""
