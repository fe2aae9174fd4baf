#!/bin/sh
# Gives any user a name and a home, which ssh, Horovod and caches need, then becomes the command.
set -eu
uid=$(id -u)
if [ ! -w "${HOME:-/}" ] || [ "${HOME:-/}" = / ]; then
  export HOME="/tmp/home-$uid"
  mkdir -p "$HOME"
  chmod 700 "$HOME"
fi
if ! getent passwd "$uid" >/dev/null && [ -w /var/lib/extrausers/passwd ]; then
  echo "user$uid:x:$uid:$(id -g)::$HOME:/bin/bash" >>/var/lib/extrausers/passwd
fi
exec "$@"
