"""The images most similar to a query, among a run's own or any others: names and cosines, and a page that shows them.

A query is an image file from anywhere, or the name of an image of the dataset. --output writes one HTML file with the
images inside, which asks nothing of anywhere. --index keeps the features in a file; --add lets images join it.

Examples:
  python -m scripts.search --workdir=runs/photos --query=cat.jpg --k=20 --output=hits.html
  python -m scripts.search --workdir=runs/digits --query=3,17 --k=5
  python -m scripts.search --workdir=runs/photos --query=a.jpg,b.jpg --index=photos.index --add=/data/new
"""

from flags import command, evaluation, search

search.define_search()


def main() -> None:
    workdir, queries, values = evaluation.required("workdir"), search.queries(), search.FLAGS
    settings = search.search_settings()
    from instcls_tf.report.search import search_with_page

    command.give(search_with_page(workdir, queries, values.k, values.output, **settings), "search", workdir)


if __name__ == "__main__":
    command.run(main, __doc__)
