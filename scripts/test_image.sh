#!/usr/bin/env bash
# Builds docker/Dockerfile.cpu and runs it, where there is no Docker engine: mmdebstrap makes the base, buildah the image.
#
#   sudo ./scripts/test_image.sh              needs mmdebstrap, buildah and OpenSSH, and about 12 GB under TMPDIR; minutes
#
#   sudo IMAGE_STORAGE=/var/tmp/images ./scripts/test_image.sh      keeps base and layers there, for the next time
#
# Digits train in it as the image's user and as one that it does not know, then on two containers, of which one is stopped;
# nothing is left behind. Behind a proxy with authorities of its own, PIP_CERT names the bundle, and PIP_CONFIG_FILE the settings of pip, both used for the build alone.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
image=localhost/instcls-tf:cpu base=localhost/instcls-base:latest

exec 3>&2 # what `timed` writes to a file is not where a failure is told

fail() {
  [[ ! -s ${work:-}/log ]] || tail -n 40 "$work/log" >&3
  echo "test_image.sh: $*" >&3
  exit 1
}

[[ $EUID == 0 ]] || fail "wanted as root: it mounts layers and makes files of several users"
for tool in mmdebstrap buildah; do
  command -v "$tool" >/dev/null || fail "$tool is not there: apt-get install mmdebstrap buildah"
done

work=$(mktemp -d)
export BUILDAH_ISOLATION=chroot
storage=${IMAGE_STORAGE:-$work}
kept=()
store=(buildah --root "$storage/storage" --runroot "$storage/run" --storage-driver overlay)

end_host() { # end_host PID: all that runs in the network of a host, which is not ours
  local network place
  network=$(readlink "/proc/$1/ns/net") || return 0
  if [[ $network != "$(readlink /proc/self/ns/net)" ]]; then
    for place in /proc/[0-9]*; do
      [[ $(readlink "$place/ns/net" 2>/dev/null) != "$network" ]] || kill -KILL "${place#/proc/}" 2>/dev/null || true
    done
  fi
  kill -KILL "$1" 2>/dev/null || true
}

clear_up() { # the containers' processes, mounts, layers, runs: all of it
  local pid
  for pid in "${kept[@]}"; do end_host "$pid"; done
  kept=()
  "${store[@]}" rm --all >/dev/null 2>&1 || true
  while read -r place; do umount -l "$place"; done < <(awk -v at="$storage/" 'index($2, at) == 1 { print $2 }' /proc/mounts | sort -r)
  rm -rf "$work"
}
trap clear_up EXIT
trap 'exit 1' INT TERM

# timed TITLE COMMAND...: a line with the seconds it took; what it said, if it failed. Within it `set -e` holds no more.
timed() {
  local title=$1 start=$SECONDS
  shift
  "$@" >"$work/log" 2>&1 </dev/null || fail "$title: failed after $((SECONDS - start)) s"
  echo "$title: $((SECONDS - start)) s"
}

make_base() {
  local container
  ! "${store[@]}" inspect --type image "$base" >/dev/null 2>&1 || return 0
  mmdebstrap --variant=minbase --components=main bookworm "$work/base.tar" || return 1
  container=$("${store[@]}" from scratch) || return 1
  "${store[@]}" add "$container" "$work/base.tar" / || return 1
  "${store[@]}" commit --rm "$container" "$base" || return 1
  rm "$work/base.tar"
}

build() {
  local settings=()
  if [[ -n ${PIP_CERT:-} ]]; then
    printf '[global]\ncert = /run/authorities.crt\n' >"$work/pip.conf"
    settings+=(--volume "$PIP_CERT:/run/authorities.crt:ro" --volume "${PIP_CONFIG_FILE:-$work/pip.conf}:/etc/pip.conf:ro")
  fi
  "${store[@]}" build --layers --format docker --pull-never --build-arg BASE="$base" --build-arg REVISION="$(git rev-parse HEAD)" \
    "${settings[@]}" --file docker/Dockerfile.cpu --tag "$image" .
}

run() { # run USER COMMAND...: as the image's entry point starts it
  local user=$1
  shift
  "${store[@]}" run --user "$user" --volume "$work/runs:/runs" "$container" -- tini -g -- /app/docker/entrypoint.sh "$@"
}

train() { # train USER
  run "$1" python -m scripts.launch -np 2 pretrain --flagfile=flags/presets/digits.flags --max_steps=20 --log_every=5 \
    --workdir="/runs/of_$1" || return 1
  run "$1" sh -c "getent passwd $1" || fail "user $1 has no name in the image"
  [[ $(stat -c %u "$work/runs/of_$1/metrics.jsonl") == "$1" ]] || fail "the run of user $1 belongs to somebody else"
  tail -n 1 "$work/runs/of_$1/metrics.jsonl"
}

refuse_surplus() { # no compiler, no tests, no pages
  local root tool package place
  root=$("${store[@]}" mount "$container")
  for tool in gcc g++ cc c++ make cmake ruff pytest; do
    [[ ! -e $root/usr/bin/$tool && ! -e $root/app/.venv/bin/$tool ]] || fail "the image holds $tool"
  done
  for package in greenlet playwright pyee; do # 170 MB, for the tests of pages alone
    ! compgen -G "$root/app/.venv/lib/python3*/site-packages/$package" >/dev/null || fail "the image holds $package"
  done
  for place in tests docs .git examples; do
    [[ ! -e $root/app/$place ]] || fail "the image holds /app/$place"
  done
  size=$(du -sx --block-size=1M "$root" | cut -f1)
}

keep_host() { # keep_host NAME ADDRESS: a container as a host of its own, kept by a process whose number goes to $work/NAME
  local root
  root=$("${store[@]}" mount "$("${store[@]}" from --pull-never --name "$1" "$image")")
  printf '127.0.0.1 localhost\n10.231.8.1 a\n10.231.8.2 b\n' >"$root/etc/hosts"
  # shellcheck disable=SC2016 # for the shell inside
  unshare --net --uts --mount --propagation private sh -c '
    hostname "$1" && ip link set lo up && mount -t proc proc "$2/proc" && mount --rbind /dev "$2/dev" &&
    mkdir -p "$2/home/instcls/.ssh" && mount --bind "$3/keys" "$2/home/instcls/.ssh" && mount --bind "$3/runs" "$2/runs" &&
    exec sleep infinity' sh "$1" "$root" "$work" &
  kept+=($!)
  disown # bash would tell of its end
  printf '%s %s %s\n' "$!" "$root" "$2" >"$work/$1"
}

inside() { # inside NAME COMMAND...: in a container, as user 1000, as the image's entry point starts it
  local pid root
  read -r pid root _ <"$work/$1"
  shift
  nsenter --target "$pid" --net --uts --mount env -i HOME=/home/instcls VIRTUAL_ENV=/app/.venv \
    PATH=/app/.venv/bin:/usr/sbin:/usr/bin:/sbin:/bin chroot --userspec=1000:1000 "$root" \
    /bin/sh -c 'cd /app && exec tini -g -- /app/docker/entrypoint.sh "$@"' sh "$@"
}

train_on_two_hosts() { # two containers, two networks, a link between them, ssh from one to the other
  local name pid address threads
  mkdir "$work/keys"
  ssh-keygen -q -t ed25519 -N "" -f "$work/keys/id_ed25519"
  cp "$work/keys/id_ed25519.pub" "$work/keys/authorized_keys"
  chown -R 1000:1000 "$work/keys"
  keep_host a 10.231.8.1/24
  keep_host b 10.231.8.2/24
  for pid in "${kept[@]}"; do # until it has its network and its mounts
    for _ in $(seq 100); do
      [[ $(<"/proc/$pid/comm") != sleep ]] || break
      sleep .1
    done
    [[ $(<"/proc/$pid/comm") == sleep ]] || return 1
  done
  ip link add eth0 netns "${kept[0]}" type veth peer name eth0 netns "${kept[1]}" || return 1
  for name in a b; do
    read -r pid _ address <"$work/$name"
    nsenter --target "$pid" --net sh -c "ip address add $address dev eth0 && ip link set eth0 up" || return 1
  done
  inside b docker/sshd.sh &
  disown
  sleep 5
  threads=$(($(nproc) > 1 ? $(nproc) / 2 : 1)) # as each of two workers of one host has, so that the losses are the same
  inside a env INSTCLS_THREADS="$threads" python -m scripts.launch -H a:1,b:1 pretrain \
    --flagfile=flags/presets/digits.flags --max_steps=20 --log_every=5 --workdir=/runs/of_two_hosts || return 1
  diff <(losses of_1000) <(losses of_two_hosts) || fail "the losses are not those of one host"
  tail -n 1 "$work/runs/of_two_hosts/metrics.jsonl"
}

servers_of() { # servers_of NAME: numbers of the processes of its docker/sshd.sh
  local pid place
  read -r pid _ _ <"$work/$1"
  for place in /proc/[0-9]*; do
    [[ $(readlink "$place/ns/net" 2>/dev/null) == "$(readlink "/proc/$pid/ns/net")" ]] || continue
    ! grep -qzx 'docker/sshd.sh' "$place/cmdline" 2>/dev/null || echo "${place#/proc/}"
  done
}

stop_a_host() { # as `docker stop` does, while a job runs on both: it saves, and the second host ends after it
  local job pid status=0
  inside a env INSTCLS_THREADS=1 python -m scripts.launch -H a:1,b:1 pretrain --flagfile=flags/presets/digits.flags --log_every=5 \
    --workdir=/runs/of_a_stopped_host &
  job=$!
  until grep -q '"step": 5,' "$work/runs/of_a_stopped_host/metrics.jsonl" 2>/dev/null; do
    kill -0 "$job" || return 1
    sleep 1
  done
  for pid in $(servers_of b); do kill -TERM "$pid"; done
  wait "$job" || status=$?
  [[ $status == 75 && -e $work/runs/of_a_stopped_host/checkpoints/checkpoint ]] || fail "a host was stopped: status $status"
  for _ in $(seq 20); do
    [[ -n $(servers_of b) ]] || break
    sleep 1
  done
  [[ -z $(servers_of b) ]] || fail "a host was stopped, and stays"
  tail -n 1 "$work/runs/of_a_stopped_host/metrics.jsonl"
}

losses() { grep -o '"loss": [^,]*' "$work/runs/$1/metrics.jsonl"; }

mkdir -m 1777 "$work/runs"
timed "base (mmdebstrap)" make_base
timed "image (buildah)" build
container=$("${store[@]}" from --pull-never "$image")
refuse_surplus
echo "size: $size MB"
timed "health check" run 1000 python -m scripts.doctor --quick
for user in 1000 12345; do
  timed "20 steps of digits, 2 workers, as user $user" train "$user"
  tail -n 1 "$work/log"
done
timed "20 steps of digits on two containers, a worker each, over ssh" train_on_two_hosts
tail -n 1 "$work/log"
timed "a container is stopped in mid-run: saved, status 75" stop_a_host
tail -n 1 "$work/log"
clear_up
echo "nothing is left: $(! ls -d "$work" 2>/dev/null && echo yes), in $SECONDS s"
