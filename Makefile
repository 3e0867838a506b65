EXPLORABLE = docs/_explorable/explorable.html

.PHONY: test thorough slow lint format docs bench story soak

test:            ## five to six minutes
	uv run pytest

thorough:        ## what CI adds to it: second looks, and the examples of docstrings
	uv run pytest -m 'thorough and not slow'
	uv run pytest jaxvae

slow:            ## all of it, in programs that XLA optimises, and the checks that take longer
	JAX_DISABLE_MOST_OPTIMIZATIONS=0 uv run pytest -m "slow or not slow" tests jaxvae

lint:
	uv run ruff check .
	uv run ruff format --check .
	uv run pyright

format:
	uv run ruff check --fix .
	uv run ruff format .

docs: $(EXPLORABLE)  ## docs/_build/index.html, and in it the story alive, explorable.html
	rm -rf docs/_build
	uv run --group docs sphinx-build -W --keep-going -q docs docs/_build
	uv run --group docs python docs/extension/dead_links.py docs/_build

$(EXPLORABLE): $(wildcard experiments/explorable/*.* experiments/explorable/figures/*)
	uv run python -m experiments.explorable --output $@

bench:           ## under five minutes: the speed of what was changed, beside the commit BASE=... before it
	uv run python -m experiments.benchmarks.change $(if $(BASE),--base $(BASE))

story:           ## the theory, each step run
	uv run python -m experiments.story

soak:            ## one run meets 2,000 faults, and is compared with a run nobody touched; 80 minutes
	uv run python -m experiments.soak
