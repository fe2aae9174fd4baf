"""Makes the runs that try the paper's claims, and renders what they found: docs/claims.yaml, docs/results.md.

Runs that are made are in docs/results.jsonl and are not made again; an interrupted command goes on. Examples:
  python -m scripts.reproduce --claim=table4_prior --scale=digits --dry_run
  python -m scripts.reproduce --claim=all --scale=cifar10 --dataset=folder:/data/cifar5k --workdir=runs/claims
  python -m scripts.reproduce --render
"""

from flags import claims, command

claims.define()


def main() -> None:
    command.give(claims.answer())


if __name__ == "__main__":
    command.run(main, __doc__)
