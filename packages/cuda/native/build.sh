#!/usr/bin/env bash
# Builds the native libraries into packages/cuda/lib. Compiles only what changed.
#
#   build.sh          libckpt_host.so, and libckpt_cuda.so where there is nvcc
#   build.sh host     libckpt_host.so
#   build.sh cuda     libckpt_cuda.so; an error without nvcc
#   build.sh test     builds and runs the C++ tests
#   build.sh cuda-test builds the C++ tests with the CUDA library and runs them; status 77 without a CUDA device
#   build.sh asan     the same under AddressSanitizer, tsan: under ThreadSanitizer
#   build.sh probe S  succeeds when the compiler has the sanitizer S (address, thread)
#
# CXX: the C++ compiler. CKPT_CUDA_ARCH: -arch of nvcc (sm_90). CKPT_NVCC: path of nvcc.
set -euo pipefail

native=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
build=$native/build
lib=$(dirname "$native")/lib
arch=${CKPT_CUDA_ARCH:-sm_90}
flags=(-std=c++20 -O2 -g1 -fPIC -fvisibility=hidden -Wall -Wextra -Werror -pthread "-I$native/include" "-I$native")
jobs=$( (nproc || getconf _NPROCESSORS_ONLN || echo 2) 2>/dev/null | head -n 1)

find_compiler() {
  local candidate
  for candidate in ${CXX:-} g++ clang++ c++; do
    if command -v "$candidate" >/dev/null; then
      compiler=$candidate
      return
    fi
  done
  echo 'No C++ compiler found: install g++ 11 or later (Debian, Ubuntu: apt install g++; Fedora: dnf install gcc-c++), or set CXX.' >&2
  exit 1
}

find_nvcc() {
  local candidate
  for candidate in "${CKPT_NVCC:-}" nvcc "${CUDA_HOME:-/usr/local/cuda}/bin/nvcc"; do
    if [[ -n $candidate ]] && command -v "$candidate" >/dev/null; then
      nvcc=$candidate
      return 0
    fi
  done
  return 1
}

# is_current OBJECT COMMAND: nothing that the object was made from is newer, and the command is the same.
is_current() {
  local object=$1 word
  [[ -f $object && -f $object.d && -f $object.command ]] || return 1
  [[ $(<"$object.command") == "$2" ]] || return 1
  for word in $(sed -e 's/^[^ ]*: //' -e 's/\\$//' "$object.d"); do
    [[ -e $word && ! $word -nt $object ]] || return 1
  done
}

compile_one() {
  local object=$1 command=$2
  rm -f "$object.command"
  eval "$command" || { echo "failed: $command" >&2; return 1; }
  printf '%s' "$command" >"$object.command"
}

# compile FOLDER COMMAND... -- SOURCE...: sets `objects`; several at once.
compile() {
  local folder=$build/$1 words=() source object command pending=0 failed=0
  shift
  while [[ $1 != -- ]]; do words+=("$(printf '%q' "$1")"); shift; done
  shift
  objects=()
  for source in "$@"; do
    object=$folder/${source#"$native"/}
    object=${object//.c/-c}.o
    objects+=("$object")
    command="${words[*]} -MMD -MF $(printf '%q' "$object.d") -c $(printf '%q' "$source") -o $(printf '%q' "$object")"
    if is_current "$object" "$command"; then continue; fi
    mkdir -p "$(dirname "$object")"
    if ((pending >= jobs)); then
      wait -n || failed=1
      pending=$((pending - 1))
    fi
    compile_one "$object" "$command" &
    pending=$((pending + 1))
  done
  while ((pending > 0)); do
    wait -n || failed=1
    pending=$((pending - 1))
  done
  return $failed
}

# link OUTPUT COMMAND...: `objects` into OUTPUT, replaced in one step because it may be in use.
link() {
  local output=$1 object stamp command
  shift
  stamp=$build/${output//\//_}.link
  command="$* ${objects[*]}"
  if [[ -f $output && -f $stamp && $(<"$stamp") == "$command" ]]; then
    for object in "${objects[@]}"; do
      [[ ! $object -nt $output ]] || break
    done
    [[ $object -nt $output ]] || return 0
  fi
  mkdir -p "$(dirname "$output")"
  "$@" "${objects[@]}" -o "$output.new"
  mv "$output.new" "$output"
  printf '%s' "$command" >"$stamp"
  echo "built ${output#"$PWD"/}"
}

build_host() {
  compile plain "$compiler" "${flags[@]}" -- "$native"/common/*.cpp "$native"/host/*.cpp
  link "$lib/libckpt_host.so" "$compiler" -shared -pthread \
    -Wl,-z,nodelete -Wl,-z,defs "-Wl,--version-script=$native/exports.map"
}

# Sets `objects` to those of the CUDA library; an error without nvcc.
compile_cuda() {
  local all
  find_nvcc || return 1
  compile plain "$compiler" "${flags[@]}" -- "$native"/common/*.cpp
  all=("${objects[@]}")
  compile "cuda-$arch" "$nvcc" -ccbin "$compiler" -std=c++20 -O2 -arch="$arch" -cudart static \
    -Werror all-warnings -Xcompiler -fPIC,-fvisibility=hidden,-Wall,-Wextra,-Werror,-pthread \
    "-I$native/include" "-I$native" "-I$native/common" -- "$native"/cuda/*.cu "$native"/cuda/*.cpp
  objects=("${all[@]}" "${objects[@]}")
}

build_cuda() {
  if ! find_nvcc; then
    echo 'libckpt_cuda.so: nvcc was not found, left out (install the CUDA toolkit or set CKPT_NVCC)'
    return "${1:-0}"
  fi
  compile_cuda
  link "$lib/libckpt_cuda.so" "$nvcc" -ccbin "$compiler" -shared -cudart static -arch="$arch" \
    -Xlinker -z,nodelete -Xlinker -z,defs -Xlinker "--version-script=$native/exports.map" \
    -Xcompiler -pthread -ldl -lrt
}

# precompile VARIANT FLAG...: sets `prelude`. The standard headers are most of the work of a small source; GCC reads
# them compiled. Other compilers do without.
precompile() {
  local folder=$build/$1 command header
  shift
  prelude=()
  "$compiler" --version | grep -q 'Free Software Foundation' || return 0
  command="$compiler ${flags[*]} $* $("$compiler" -dumpfullversion)"
  if [[ ! -f $folder/prelude.h.gch || ! -f $folder/prelude.command || $(<"$folder/prelude.command") != "$command" ]]; then
    mkdir -p "$folder"
    for header in algorithm atomic chrono condition_variable deque fstream functional map memory mutex optional \
      string thread vector; do
      echo "#include <$header>"
    done >"$folder/prelude.h"
    "$compiler" "${flags[@]}" "$@" -x c++-header "$folder/prelude.h" -o "$folder/prelude.h.gch"
    printf '%s' "$command" >"$folder/prelude.command"
  fi
  prelude=(-include "$folder/prelude.h")
}

# build_tests VARIANT FLAG...: the library's sources and the tests in one program.
build_tests() {
  local variant=$1
  shift
  compile "$variant" "$compiler" "${flags[@]}" "$@" -- \
    "$native"/common/*.cpp "$native"/host/*.cpp "$native"/tests/*.cpp
  link "$build/$variant/ckpt-tests" "$compiler" -pthread "$@"
}

# The same with the CUDA library, whatever is of the host library only left out.
build_cuda_tests() {
  local library=() sources=() source
  if ! find_nvcc; then
    echo 'nvcc was not found: install the CUDA toolkit or set CKPT_NVCC' >&2
    return 1
  fi
  compile_cuda
  library=("${objects[@]}")
  for source in "$native"/tests/*.cpp; do
    [[ $source == */host-*.cpp ]] || sources+=("$source")
  done
  compile cuda-test "$compiler" "${flags[@]}" -DCKPT_TESTS_CUDA -- "${sources[@]}"
  objects=("${library[@]}" "${objects[@]}")
  link "$build/cuda-test/ckpt-tests" "$nvcc" -ccbin "$compiler" -cudart static -arch="$arch" \
    -Xcompiler -pthread -ldl -lrt
}

has_sanitizer() {
  echo 'int main() {}' | "$compiler" "-fsanitize=$1" -x c++ - -o "$build/probe-$1" 2>/dev/null &&
    "$build/probe-$1" 2>/dev/null
}

# The lock is for builds only.
run_tests() {
  exec 9>&-
  "$build/$1/ckpt-tests"
}

build_sanitized() {
  local variant=$1 sanitizer=$2
  shift 2
  if ! has_sanitizer "$sanitizer"; then
    echo "skipped: $compiler has no working -fsanitize=$sanitizer here"
    exit 1
  fi
  # GCC warns of its own standard library when it adds a sanitizer's checks.
  local extra=("-fsanitize=$sanitizer" -O1 -fno-omit-frame-pointer -Wno-maybe-uninitialized)
  precompile "$variant" "${extra[@]}"
  build_tests "$variant" "${extra[@]}" "${prelude[@]}"
}

main() {
  find_compiler
  mkdir -p "$build"
  # Two builds at a time would write the same objects.
  if command -v flock >/dev/null; then
    exec 9>"$build/lock"
    flock 9
  fi
  case ${1:-all} in
    all) build_host; build_cuda ;;
    host) build_host ;;
    cuda) build_cuda 1 ;;
    test) build_tests plain; run_tests plain ;;
    cuda-test) build_cuda_tests; run_tests cuda-test ;;
    asan) build_sanitized asan address; ASAN_OPTIONS=detect_leaks=1 run_tests asan ;;
    tsan) build_sanitized tsan thread; TSAN_OPTIONS=second_deadlock_stack=1 run_tests tsan ;;
    probe) has_sanitizer "$2" ;;
    *) sed -n '2,13s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2; exit 2 ;;
  esac
}

main "$@"
