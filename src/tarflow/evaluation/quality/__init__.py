"""What are samples worth? Named figures on features of real images, and the sweep that chooses by them."""
