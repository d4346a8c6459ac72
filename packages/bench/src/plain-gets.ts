/**
 * As little as there can be around `ucp_get_nbx`: a loop that asks for the next pieces of another process's memory while it waits
 * for the ones before, in a thread that does nothing else.
 */
import { dlopen, type Pointer, ptr } from 'bun:ffi'
import type { SharedMemory } from './p2p-owner.ts'

/** Of one get, and how many are on their way: those of `ucx_perftest`'s size reach its rate (native/tests/p2p-bench.cpp). */
const GET_BYTES = 4 * 2 ** 20
const GETS_MAX = 4
/** In front of what UCX packs, see `native/common/p2p-frames.cpp`: the memory's address is its third word. */
const HEADER_BYTES = 32
const ADDRESS_AT = 8
/** Of the interface that UCX has kept since then. */
const VERSION = [1, 12] as const
/** No structure of UCX that is handed over here has more bytes. */
const STRUCT_BYTES = 512
/** Fields of `ucp_params_t`, `ucp_ep_params_t` and `ucp_request_param_t`, and what they say. */
const PARAMS_FEATURES = 1n
const FEATURE_RMA = 2n
const EP_ADDRESS_AND_ERROR_MODE = 3n
const ERROR_MODE_PEER = 1
const REQUEST_FLAGS = 1 << 4
const CLOSE_FORCE = 1
/** `ucs_status_ptr_t`: statuses are the last addresses there are. */
const FIRST_STATUS = 2n ** 64n - 100n

const FUNCTIONS = {
  ucp_config_read: { args: ['ptr', 'ptr', 'ptr'], returns: 'i8' },
  ucp_config_release: { args: ['u64'], returns: 'void' },
  ucp_init_version: { args: ['u32', 'u32', 'ptr', 'u64', 'ptr'], returns: 'i8' },
  ucp_cleanup: { args: ['u64'], returns: 'void' },
  ucp_worker_create: { args: ['u64', 'ptr', 'ptr'], returns: 'i8' },
  ucp_worker_destroy: { args: ['u64'], returns: 'void' },
  ucp_worker_progress: { args: ['u64'], returns: 'u32' },
  ucp_ep_create: { args: ['u64', 'ptr', 'ptr'], returns: 'i8' },
  ucp_ep_close_nbx: { args: ['u64', 'ptr'], returns: 'u64' },
  ucp_ep_rkey_unpack: { args: ['u64', 'ptr', 'ptr'], returns: 'i8' },
  ucp_rkey_destroy: { args: ['u64'], returns: 'void' },
  ucp_get_nbx: { args: ['u64', 'ptr', 'u64', 'u64', 'u64', 'ptr'], returns: 'u64' },
  ucp_request_check_status: { args: ['u64'], returns: 'i8' },
  ucp_request_free: { args: ['u64'], returns: 'void' },
} as const

type Ucx = ReturnType<typeof dlopen<typeof FUNCTIONS>>['symbols']

function check(status: number, what: string): void {
  if (status < 0) throw new Error(`${what}: UCX says ${status}`)
}

/** What a call writes to the address that it is given. */
function made(what: string, call: (to: Pointer) => number): bigint {
  const to = new BigUint64Array(1)
  check(call(ptr(to)), what)
  return to[0] as bigint
}

/** Reads of one process's memory, with the settings that the library has given UCX when it was opened first. */
export class PlainGets {
  readonly #ucx: Ucx
  readonly #context: bigint
  readonly #worker: bigint
  readonly #endpoint: bigint
  readonly #key: bigint
  readonly #from: bigint
  readonly #request = new Uint8Array(STRUCT_BYTES)

  constructor(told: SharedMemory) {
    const [address, key] = [Uint8Array.fromHex(told.address), Uint8Array.fromHex(told.key)]
    if (key.length === HEADER_BYTES) throw new Error('UCX has no key of that memory')
    const ucx = dlopen('libucp.so.0', FUNCTIONS).symbols
    this.#ucx = ucx
    const params = new BigUint64Array(STRUCT_BYTES / 8)
    params.set([PARAMS_FEATURES, FEATURE_RMA])
    const config = made('ucp_config_read', (to) => ucx.ucp_config_read(null, null, to))
    this.#context = made('ucp_init', (to) =>
      ucx.ucp_init_version(...VERSION, ptr(params), config, to),
    )
    ucx.ucp_config_release(config)
    const nothing = new Uint8Array(STRUCT_BYTES)
    this.#worker = made('ucp_worker_create', (to) =>
      ucx.ucp_worker_create(this.#context, ptr(nothing), to),
    )
    const endpoint = new BigUint64Array(STRUCT_BYTES / 8)
    const plain = address.slice(HEADER_BYTES)
    endpoint.set([EP_ADDRESS_AND_ERROR_MODE, BigInt(ptr(plain)), BigInt(ERROR_MODE_PEER)])
    this.#endpoint = made('ucp_ep_create', (to) =>
      ucx.ucp_ep_create(this.#worker, ptr(endpoint), to),
    )
    const packed = key.slice(HEADER_BYTES)
    this.#key = made('ucp_ep_rkey_unpack', (to) =>
      ucx.ucp_ep_rkey_unpack(this.#endpoint, ptr(packed), to),
    )
    this.#from = new DataView(key.buffer).getBigUint64(ADDRESS_AT, true)
  }

  /** Fills `to` with what is there. Blocks. */
  read(to: Uint8Array): void {
    const begin = ptr(to)
    const pending: bigint[] = []
    for (let at = 0; at < to.length; at += GET_BYTES) {
      if (pending.length === GETS_MAX) this.#wait(pending.shift() as bigint)
      const bytes = Math.min(GET_BYTES, to.length - at)
      const from = this.#from + BigInt(at)
      const request = this.#ucx.ucp_get_nbx(
        this.#endpoint,
        (begin + at) as Pointer,
        BigInt(bytes),
        from,
        this.#key,
        ptr(this.#request),
      )
      pending.push(request)
    }
    for (const request of pending) this.#wait(request)
  }

  /** For a request, or a status in its place. */
  #wait(request: bigint): void {
    if (request === 0n) return
    if (request >= FIRST_STATUS) check(Number(request - 2n ** 64n), 'ucp_get_nbx')
    let status = 1
    while ((status = this.#ucx.ucp_request_check_status(request)) > 0) {
      this.#ucx.ucp_worker_progress(this.#worker)
    }
    this.#ucx.ucp_request_free(request)
    check(status, 'a get')
  }

  close(): void {
    this.#ucx.ucp_rkey_destroy(this.#key)
    const force = new Uint32Array(STRUCT_BYTES / 4)
    force.set([REQUEST_FLAGS, CLOSE_FORCE])
    const closing = this.#ucx.ucp_ep_close_nbx(this.#endpoint, ptr(force))
    if (closing !== 0n && closing < FIRST_STATUS) this.#wait(closing)
    this.#ucx.ucp_worker_destroy(this.#worker)
    this.#ucx.ucp_cleanup(this.#context)
  }
}
