import {
  existsSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statfsSync,
  writeFileSync,
} from 'node:fs'
import { freemem, tmpdir, totalmem } from 'node:os'
import { join } from 'node:path'
import { naturalCompare } from '@ckpt/core'
import { libraryDir, numaNodeCount, openLibrary, ZmqContext } from '@ckpt/cuda'
import type { Check } from './check.ts'
import { formatBytes } from './format.ts'
import { openNccl, openUcx } from './library-check.ts'
import { ncclCheck } from './nccl-check.ts'
import { rdmaCheck } from './rdma-check.ts'

const GIB = 1024 ** 3

/** Looks at everything that the program can use on this machine. Nothing is changed. */
export function runChecks(): Check[] {
  return [
    compiler(),
    nativeLibrary('host'),
    zeromq(),
    sharedMemory(),
    nativeLibrary('cuda'),
    cudaDriver(),
    cudaToolkit(),
    ncclCheck(openNccl(['libnccl.so.2'])),
    ucx(),
    rdma(),
    hostMemory(),
    lockedMemory(),
    hugePages(),
    leases(),
    openFiles(),
  ]
}

function compiler(): Check {
  const name = process.env.CXX ?? ['c++', 'g++', 'clang++'].find((name) => Bun.which(name) !== null)
  const path = name === undefined ? null : Bun.which(name)
  if (path !== null) return { name: 'C++ compiler', state: 'ok', found: path }
  // a built library works without one
  const built = existsSync(join(libraryDir(), 'libckpt_host.so'))
  return {
    name: 'C++ compiler',
    state: built ? 'note' : 'missing',
    found: 'none on the PATH',
    fix: 'apt-get install g++, or dnf install gcc-c++',
  }
}

function nativeLibrary(kind: 'host' | 'cuda'): Check {
  const name = `${kind} library`
  const fix =
    kind === 'host'
      ? 'npm run setup'
      : 'on a machine with an NVIDIA driver: install the CUDA toolkit (nvcc), then npm run build'
  try {
    const library = openLibrary({ kind })
    const devices = Array.from({ length: library.deviceCount() }, (_, i) =>
      library.deviceDescribe(i),
    )
    if (devices.length === 0)
      return { name, state: 'absent', found: 'loads, but sees no device', fix }
    const severalNodes = (numaNodeCount() ?? 1) > 1
    const found = devices
      .map(({ name: device, totalBytes, numaNode }) => {
        const node = numaNode < 0 ? 'unknown' : `${numaNode}`
        return `${device} ${formatBytes(totalBytes)}${severalNodes ? ` (NUMA node ${node})` : ''}`
      })
      .join(', ')
    return { name, state: 'ok', found: kind === 'host' ? 'loads' : found }
  } catch (error) {
    return { name, state: kind === 'host' ? 'missing' : 'absent', found: message(error), fix }
  }
}

function zeromq(): Check {
  try {
    new ZmqContext().close()
    return {
      name: 'libzmq',
      state: 'ok',
      found: "opens (the prebuilt file of the npm package 'zeromq')",
    }
  } catch (error) {
    const fix = 'npm run setup, or install libzmq5 and set CKPT_LIBZMQ to its path'
    return { name: 'libzmq', state: 'missing', found: message(error), fix }
  }
}

/** The host library's device memory and every engine's reference counter live there. */
function sharedMemory(): Check {
  const name = 'shared memory'
  try {
    const { blocks, bavail, bsize } = statfsSync('/dev/shm')
    const found = `/dev/shm has ${formatBytes(bavail * bsize)} free of ${formatBytes(blocks * bsize)}`
    if (bavail * bsize >= GIB) return { name, state: 'ok', found }
    return {
      name,
      state: 'note',
      found,
      fix: 'docker run --shm-size=16g, or mount -o remount,size=16G /dev/shm',
    }
  } catch (error) {
    return { name, state: 'missing', found: message(error), fix: 'mount -t tmpfs tmpfs /dev/shm' }
  }
}

/** libcuda.so.1 need not be on the loader's path: the CUDA runtime in the library looks in more places. */
function cudaDriver(): Check {
  const name = 'CUDA driver'
  const devices = existsSync('/dev')
    ? readdirSync('/dev').filter((file) => /^nvidia\d+$/.test(file))
    : []
  const driver = read('/proc/driver/nvidia/version')?.match(/\d+\.\d+(\.\d+)?/)?.[0]
  const module = driver === undefined ? 'no kernel module' : `driver ${driver}`
  const found = `${module}, ${devices.length} devices in /dev`
  if (driver !== undefined && devices.length > 0) return { name, state: 'ok', found }
  const fix = 'install the NVIDIA driver; in a container: --gpus all (nvidia-container-toolkit)'
  return { name, state: 'absent', found, fix }
}

function cudaToolkit(): Check {
  const name = 'CUDA toolkit'
  const home = process.env.CUDA_HOME ?? '/usr/local/cuda'
  const nvcc =
    Bun.which('nvcc') ?? (existsSync(join(home, 'bin/nvcc')) ? join(home, 'bin/nvcc') : null)
  if (nvcc !== null) return { name, state: 'ok', found: nvcc }
  const fix = 'only needed to build the cuda library: install the toolkit and set CUDA_HOME'
  return { name, state: 'absent', found: 'no nvcc', fix }
}

function ucx(): Check {
  const name = 'UCX'
  const library = openUcx(['libucp.so.0', 'libucp.so'])
  if (library === null) {
    const fix = 'only needed for joining instances on other hosts: apt-get install libucx0'
    return { name, state: 'absent', found: 'no libucp.so.0', fix }
  }
  const version = library.version === null ? '' : `: ${library.version}`
  return { name, state: 'ok', found: `${library.name} opens${version}` }
}

function rdma(): Check {
  const { PS_P2P_STORE_RDMA_DEVICES: devices, NCCL_IB_HCA: hca } = process.env
  const available = entries('/sys/class/infiniband').toSorted(naturalCompare)
  return rdmaCheck(available, { devices, hca }, entries('/proc/driver/nvidia/gpus').length)
}

function hostMemory(): Check {
  const limit = Number(read('/sys/fs/cgroup/memory.max')?.trim())
  const inCgroup = Number.isFinite(limit) && limit > 0 && limit < totalmem()
  const most = inCgroup ? `, this control group may use ${formatBytes(limit)}` : ''
  return {
    name: 'host memory',
    state: 'ok',
    found: `${formatBytes(freemem())} free of ${formatBytes(totalmem())}${most}`,
  }
}

/** The fifth and sixth word of a line of /proc/self/limits, such as `Max locked memory  8388608  8388608  bytes`. */
function limit(name: string): string | null {
  const line = read('/proc/self/limits')
    ?.split('\n')
    .find((text) => text.startsWith(name))
  return line?.slice(name.length).trim().split(/\s+/)[0] ?? null
}

function lockedMemory(): Check {
  const name = 'locked memory'
  const text = limit('Max locked memory')
  const bytes = text === 'unlimited' ? Number.POSITIVE_INFINITY : Number(text)
  const found =
    text === 'unlimited' ? 'unlimited' : `at most ${formatBytes(bytes || 0)} (ulimit -l)`
  if (bytes >= totalmem() / 2) return { name, state: 'ok', found }
  const fix =
    'CUDA pins without this limit, RDMA does not: ulimit -l unlimited, or docker run --ulimit memlock=-1'
  return { name, state: 'note', found, fix }
}

function hugePages(): Check {
  const name = 'huge pages'
  const text = read('/sys/kernel/mm/transparent_hugepage/enabled')
  const mode = text?.match(/\[(\w+)\]/)?.[1]
  if (mode === 'always' || mode === 'madvise')
    return { name, state: 'ok', found: `transparent, ${mode}` }
  const fix =
    'pinning is faster with them: echo madvise > /sys/kernel/mm/transparent_hugepage/enabled'
  return { name, state: 'note', found: mode ?? 'the kernel has none', fix }
}

/** In-place files are held with a read lease; without one they are read into memory. */
function leases(): Check {
  const name = 'file leases'
  const directory = mkdtempSync(join(tmpdir(), 'ckpt-doctor-'))
  try {
    const path = join(directory, 'lease')
    writeFileSync(path, 'x')
    const library = openLibrary({ kind: 'host' })
    const signal = library.signalCreate()
    const file = library.fileOpen(path)
    try {
      library.fileLease(file, signal)
      return { name, state: 'ok', found: `a read lease in ${tmpdir()} is granted` }
    } finally {
      library.fileClose(file)
      library.signalDestroy(signal)
    }
  } catch (error) {
    const fix =
      'sysctl fs.leases-enable=1; network file systems have none, files there are copied into memory'
    return { name, state: 'note', found: message(error), fix }
  } finally {
    rmSync(directory, { recursive: true, force: true })
  }
}

function openFiles(): Check {
  const name = 'open files'
  const text = limit('Max open files')
  if (text === 'unlimited' || Number(text) >= 4096) return { name, state: 'ok', found: `${text}` }
  return {
    name,
    state: 'note',
    found: `${text ?? 'unknown'} (ulimit -n)`,
    fix: 'ulimit -n 65536, for checkpoints of many files',
  }
}

function entries(directory: string): string[] {
  try {
    return readdirSync(directory)
  } catch {
    return []
  }
}

function read(path: string): string | null {
  try {
    return readFileSync(path, 'utf8')
  } catch {
    return null
  }
}

function message(error: unknown): string {
  return error instanceof Error ? error.message : String(error)
}
