#!/usr/bin/env bash
# install.sh COMMAND: installs it with whatever package manager is here; says what to do where there is none.
set -euo pipefail
name=${1:?usage: install.sh COMMAND}

as_root=()
[ "$(id -u)" = 0 ] || as_root=(sudo)

if command -v apt-get >/dev/null; then
  "${as_root[@]}" apt-get update -qq
  "${as_root[@]}" apt-get install -y -qq "$name" >/dev/null
elif command -v dnf >/dev/null; then
  "${as_root[@]}" dnf install -y -q "/usr/bin/$name"
elif command -v apk >/dev/null; then
  "${as_root[@]}" apk add --quiet "$name"
elif command -v pacman >/dev/null; then
  "${as_root[@]}" pacman -S --noconfirm "$name"
elif command -v brew >/dev/null; then
  brew install "$name"
else
  echo "$name is missing, and no package manager known here can install it: install it by hand and try again." >&2
  exit 1
fi
