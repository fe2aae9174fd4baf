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
  # Of users and groups below 500 the system does not take names from there, but for group 100.
  gid=$(id -g)
  [ "$uid" -ge 500 ] || echo "entrypoint.sh: user $uid gets no name, and ssh to or from this container will not do: --user with 500 or more" >&2
  [ "$gid" -ge 500 ] || gid=100
  echo "user$uid:x:$uid:$gid::$HOME:/bin/bash" >>/var/lib/extrausers/passwd
fi
exec "$@"
