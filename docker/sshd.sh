#!/bin/sh
# Answers ssh, for a container that is a second host of a job: docker run ... instcls-tf:cpu docker/sshd.sh
#
# Keys come from ~/.ssh/authorized_keys, or the file that SSH_AUTHORIZED_KEYS names. Port 2222 needs no root; SSH_PORT takes
# another. Passwords are refused. A user other than root can log in as himself alone.
set -eu
state=$(mktemp -d)
ssh-keygen -q -t ed25519 -N "" -f "$state/host_key"
[ "$(id -u)" != 0 ] || mkdir -p /run/sshd
# StrictModes: secrets are mounted with modes that ssh does not like. SetEnv: a shell of ssh starts without a home of ours.
exec /usr/sbin/sshd -D -e -f /dev/null -p "${SSH_PORT:-2222}" -h "$state/host_key" -o PidFile=none -o UsePAM=no \
  -o StrictModes=no -o PasswordAuthentication=no -o KbdInteractiveAuthentication=no \
  -o AuthorizedKeysFile="${SSH_AUTHORIZED_KEYS:-$HOME/.ssh/authorized_keys}" -o SetEnv="HOME=$HOME"
