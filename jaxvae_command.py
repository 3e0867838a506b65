"""The program `jaxvae`, outside the package, so that its imports can be interrupted in one line."""

import sys


def main() -> int:
    try:
        from jaxvae.nn.command_line import main as run

        return run()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
