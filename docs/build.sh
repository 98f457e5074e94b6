#!/bin/sh
# Builds the site of the documentation in build/docs/; a link that leads nowhere fails it.
#
# Sphinx and its theme are installed in the versions of requirements/docs.txt, into an environment
# of their own, build/docs-venv. While that file stays the same there is nothing to install.
set -eu
cd "$(dirname "$0")/.."

venv=build/docs-venv
lock=requirements/docs.txt
if ! cmp -s "$lock" "$venv/installed.txt"; then
  echo "docs: installing $lock into $venv"
  "${PYTHON:-python3}" -m venv --clear "$venv"
  "$venv/bin/pip" install --quiet --quiet --disable-pip-version-check --no-deps --require-hashes --requirement "$lock"
  cp "$lock" "$venv/installed.txt"
fi
"$venv/bin/sphinx-build" --builder html --fail-on-warning --keep-going --nitpicky --quiet --fresh-env --write-all \
  --conf-dir docs --doctree-dir build/docs-pages . build/docs
echo "docs: build/docs/index.html"
