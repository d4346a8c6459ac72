import { dlopen, type Pointer } from 'bun:ffi'
import { existsSync, readdirSync, readFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { CkptError } from '@ckpt/core/api/errors'

const POINTER = 'ptr'

/** The functions of libzmq 4.3 that are used; `long` is 64 bits wide on every platform that we run on. */
const ZMQ_SYMBOLS = {
  zmq_version: { args: ['buffer', 'buffer', 'buffer'], returns: 'void' },
  zmq_errno: { args: [], returns: 'i32' },
  zmq_strerror: { args: ['i32'], returns: 'cstring' },
  zmq_ctx_new: { args: [], returns: POINTER },
  zmq_ctx_shutdown: { args: [POINTER], returns: 'i32' },
  zmq_ctx_term: { args: [POINTER], returns: 'i32' },
  zmq_socket: { args: [POINTER, 'i32'], returns: POINTER },
  zmq_close: { args: [POINTER], returns: 'i32' },
  zmq_setsockopt: { args: [POINTER, 'i32', 'buffer', 'u64'], returns: 'i32' },
  zmq_getsockopt: { args: [POINTER, 'i32', 'buffer', 'buffer'], returns: 'i32' },
  zmq_bind: { args: [POINTER, 'buffer'], returns: 'i32' },
  zmq_unbind: { args: [POINTER, 'buffer'], returns: 'i32' },
  zmq_connect: { args: [POINTER, 'buffer'], returns: 'i32' },
  zmq_disconnect: { args: [POINTER, 'buffer'], returns: 'i32' },
  zmq_send: { args: [POINTER, 'buffer', 'u64', 'i32'], returns: 'i32' },
  zmq_msg_init: { args: ['buffer'], returns: 'i32' },
  zmq_msg_recv: { args: ['buffer', POINTER, 'i32'], returns: 'i32' },
  zmq_msg_data: { args: ['buffer'], returns: POINTER },
  zmq_msg_size: { args: ['buffer'], returns: 'u64' },
  zmq_msg_more: { args: ['buffer'], returns: 'i32' },
  zmq_msg_close: { args: ['buffer'], returns: 'i32' },
  zmq_poll: { args: ['buffer', 'i32', 'i64'], returns: 'i32' },
  zmq_socket_monitor: { args: [POINTER, 'buffer', 'i32'], returns: 'i32' },
  zmq_has: { args: ['buffer'], returns: 'i32' },
  zmq_curve_public: { args: ['buffer', 'buffer'], returns: 'i32' },
} as const

/** The same function once more: a `buffer` argument cannot be NULL, which ends a monitor. */
const ZMQ_MONITOR_END = {
  zmq_socket_monitor: { args: [POINTER, POINTER, 'i32'], returns: 'i32' },
} as const

type ZmqArgument = number | ArrayBufferView
export type ZmqCalls = Record<
  Exclude<keyof typeof ZMQ_SYMBOLS, 'zmq_strerror' | 'zmq_msg_size'>,
  (...args: ZmqArgument[]) => number
> & {
  zmq_strerror(code: number): string
  zmq_msg_size(message: ArrayBufferView): bigint
  endMonitor(socket: number): number
}

let opened: ZmqCalls | null = null

/**
 * libzmq's C functions. The npm package `zeromq` brings them: its JavaScript binding aborts under Bun (`uv_poll_init_socket`), but its
 * prebuilt addon exports them. Order: `CKPT_LIBZMQ`, the package, the system's `libzmq.so.5`. Throws `native_missing` with
 * what was tried.
 */
export function openLibzmq(): ZmqCalls {
  if (opened !== null) return opened
  const failures: string[] = []
  for (const path of candidates()) {
    try {
      opened = open(path)
      return opened
    } catch (error) {
      failures.push(`${path}: ${error instanceof Error ? error.message : String(error)}`)
    }
  }
  throw new CkptError(
    'native_missing',
    `no usable libzmq (run \`bun install\`, or set CKPT_LIBZMQ); tried ${failures.join('; ')}`,
  )
}

function open(path: string): ZmqCalls {
  const symbols = dlopen(path, ZMQ_SYMBOLS).symbols as unknown as Record<string, unknown>
  const missing = Object.keys(ZMQ_SYMBOLS).filter((name) => typeof symbols[name] !== 'function')
  if (missing.length > 0) throw new Error(`it lacks ${missing.join(', ')}`)
  const calls = symbols as unknown as ZmqCalls
  const monitorEnd = dlopen(path, ZMQ_MONITOR_END).symbols.zmq_socket_monitor
  const [major, minor] = zmqVersion(calls)
  if (major !== 4 || minor < 2) throw new Error(`version ${major}.${minor} is not 4.2 or later`)
  return {
    ...calls,
    zmq_strerror: (code) => String(calls.zmq_strerror(code)),
    zmq_msg_size: (message) => BigInt(calls.zmq_msg_size(message)),
    endMonitor: (socket) => monitorEnd(socket as Pointer, null, 0),
  }
}

export function zmqVersion(calls: ZmqCalls): [number, number, number] {
  const parts = [0, 1, 2].map(() => new Int32Array(new ArrayBuffer(4)))
  calls.zmq_version(...parts)
  return parts.map((part) => part[0]) as [number, number, number]
}

function candidates(): string[] {
  const override = process.env.CKPT_LIBZMQ
  if (override) return [override]
  return [...packagedAddons(), 'libzmq.so.5']
}

function packageDir(): string | null {
  // A bundle may lie outside the package tree that it was made in: then the working directory's is used.
  for (const from of [import.meta.dir, process.cwd()]) {
    try {
      return dirname(Bun.resolveSync('zeromq/package.json', from))
    } catch {}
  }
  return null
}

/** Prebuilt addons for this C library and processor, those that need the oldest glibc first. */
function packagedAddons(): string[] {
  const root = packageDir()
  if (root === null) return []
  const dir = join(root, 'build', process.platform, process.arch, 'node')
  if (!existsSync(dir)) return []
  const libc = readFileSync('/proc/self/maps', 'utf8').includes('/ld-musl-') ? 'musl' : 'glibc'
  const order = [`${libc}-127-Release`, `${libc}-115-Release`]
  const rest = readdirSync(dir).filter((name) => name.startsWith(libc) && !order.includes(name))
  const paths = [...order, ...rest.sort()].map((name) => join(dir, name, 'addon.node'))
  return paths.filter((path) => existsSync(path))
}
