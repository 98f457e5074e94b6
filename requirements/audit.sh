#!/bin/sh
# Says what the locks bring in.
#
# `audit.sh sbom` writes a CycloneDX bill of materials of each lock: build/sbom/cpu.cdx.json, and so on.
# `audit.sh audit` asks PyPI for the known vulnerabilities of each lock, and fails where there are some.
# Both tools are installed, in the versions named here, into a virtual environment that is thrown away.
set -eu
cd "$(dirname "$0")/.."

task=${1:-}
case $task in
sbom) package=cyclonedx-bom==7.5.0 ;;
audit) package=pip-audit==2.10.1 ;;
*)
  echo "usage: audit.sh sbom|audit" >&2
  exit 2
  ;;
esac
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
"${PYTHON:-python3}" -m venv "$scratch/venv"
"$scratch/venv/bin/pip" install --quiet --quiet "$package"

bill_of_materials() {
  mkdir -p build/sbom
  "$scratch/venv/bin/cyclonedx-py" requirements "requirements/$1.txt" --output-reproducible >"$scratch/$1.json"
  mv "$scratch/$1.json" "build/sbom/$1.cdx.json"
  echo "build/sbom/$1.cdx.json is written"
}

# PyPI knows the CPU build of torch by its plain version. A package that cannot be asked about is an error.
audit() {
  echo "requirements/$1.txt:"
  sed -n 's/^\([a-z0-9.-]*==[0-9][0-9a-z.]*\).*/\1/p' "requirements/$1.txt" >"$scratch/$1.txt"
  "$scratch/venv/bin/pip-audit" --strict --requirement "$scratch/$1.txt" --no-deps --disable-pip --progress-spinner off
}

status=0
for lock in cpu cuda docs; do
  case $task in
  sbom) bill_of_materials "$lock" ;;
  audit) audit "$lock" || status=1 ;;
  esac
done
exit $status
