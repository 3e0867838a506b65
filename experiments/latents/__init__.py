"""What is done with the latents of a VAE that has been trained."""
