"""The theory of the VAE in the order it is taught, each step run on 8x8 digits.

    python -m experiments.story [--output runs/story] [--fast]

1. `autoencoder`: it reconstructs, and cannot be sampled.
2. `evidence`: p(x) by drawing from the prior, and by importance sampling.
3. `em`: where EM is exact, and what stops it beyond the linear model.
4. `lower_bound`: the ELBO and its gap, exact in the linear model.
5. `gradients`: reparameterization against the score function.
6. `covariance`: what a diagonal posterior loses.
7. `beta`: rate against distortion.

Each is a function `step(digits, key, fast)` in its own file, to be read from top to bottom. Steps 2
to 6 lean on probabilistic PCA, the linear VAE, where all that a VAE approximates is known exactly.
The page with numbers and pictures is docs/story.md.
"""
