"""What mixers are made of: caches, rotary positions, tiles of attention, short and long convolutions, shifts."""
