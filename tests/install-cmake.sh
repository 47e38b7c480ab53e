#!/usr/bin/env bash
# Installs cmake with whatever package manager is here; says what to do where there is none.
set -euo pipefail

as_root=()
[ "$(id -u)" = 0 ] || as_root=(sudo)

if command -v apt-get >/dev/null; then
  "${as_root[@]}" apt-get update -qq
  "${as_root[@]}" apt-get install -y -qq cmake >/dev/null
elif command -v dnf >/dev/null; then
  "${as_root[@]}" dnf install -y -q cmake
elif command -v apk >/dev/null; then
  "${as_root[@]}" apk add --quiet cmake
elif command -v pacman >/dev/null; then
  "${as_root[@]}" pacman -S --noconfirm cmake
elif command -v brew >/dev/null; then
  brew install cmake
else
  echo "cmake is needed to build Pingora's zlib, and no package manager known here can install it." >&2
  echo "Install it from https://cmake.org/download/ and try again." >&2
  exit 1
fi
