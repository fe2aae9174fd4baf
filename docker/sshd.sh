#!/bin/sh
# Answers ssh, for a container that is a second host of a job: docker run ... instcls-tf:cpu docker/sshd.sh
#
# Keys come from ~/.ssh/authorized_keys, or the file that SSH_AUTHORIZED_KEYS names. Port 2222 needs no root; SSH_PORT takes
# another. Passwords are refused, and its user can log in as himself alone. When the container is asked to stop, the
# workers in it are asked to save, and it ends after them, if it is given the time.
set -eu
if [ "$(id -u)" = 0 ]; then
  echo "sshd.sh: not as root, whose home any user of the image could write keys into: --user 1000:1000, say" >&2
  exit 1
fi
state=$(mktemp -d)
ssh-keygen -q -t ed25519 -N "" -f "$state/host_key"

container=$(readlink /proc/self/ns/mnt)

in_job() { # a job's processes in this container
  for place in /proc/[0-9]*; do
    [ "$(readlink "$place/ns/mnt" 2>/dev/null)" = "$container" ] || continue
    ! grep -qz '^INSTCLS_JOB=' "$place/environ" 2>/dev/null || echo "${place#/proc/}"
  done
}

leave() {
  trap '' TERM
  # shellcheck disable=SC2046 # one word each
  kill -USR1 $(in_job) 2>/dev/null || true # a worker that is asked to stop has those of other hosts stop in the same step
  while [ -n "$(in_job)" ]; do sleep 1; done
  kill "$server"
  exit 0
}

# A session of its own: signals to the container's group do not end it before the workers.
# StrictModes: secrets are mounted with modes that ssh does not like. SetEnv: a shell of ssh starts without a home of ours.
setsid /usr/sbin/sshd -D -e -f /dev/null -p "${SSH_PORT:-2222}" -h "$state/host_key" -o PidFile=none -o UsePAM=no \
  -o StrictModes=no -o PasswordAuthentication=no -o KbdInteractiveAuthentication=no -o DisableForwarding=yes \
  -o AuthorizedKeysFile="${SSH_AUTHORIZED_KEYS:-$HOME/.ssh/authorized_keys}" -o SetEnv="HOME=$HOME" &
server=$!
trap leave TERM
wait "$server"
