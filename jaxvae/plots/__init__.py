"""Pictures of a model and its run, and the page that explains them. It needs matplotlib."""

from jaxvae.plots.figures import image_grid as image_grid
from jaxvae.plots.figures import latent_map as latent_map
from jaxvae.plots.figures import latent_rates as latent_rates
from jaxvae.plots.figures import learning_curves as learning_curves
from jaxvae.plots.figures import level_rates as level_rates
from jaxvae.plots.figures import mosaic as mosaic
from jaxvae.plots.figures import traversals as traversals
from jaxvae.plots.model_pictures import pictures as pictures
from jaxvae.plots.page import report as report
from jaxvae.plots.page import write_report as write_report
from jaxvae.plots.style import figure as figure
from jaxvae.plots.style import styled as styled
