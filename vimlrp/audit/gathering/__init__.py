"""The first stages: what is known of every picture, its class and its relevance."""
