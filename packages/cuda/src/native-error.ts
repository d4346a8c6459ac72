import { CkptError, type ErrorCode } from '@ckpt/core/api/errors'
import * as abi from './generated.ts'

/** A function of the native library failed. `message` is the library's own text. */
export class NativeError extends CkptError {
  /** `ckpt_status`; `status` is the HTTP status, as in every CkptError. */
  readonly nativeStatus: number
  readonly symbol: string

  constructor(symbol: string, status: number, text: string) {
    super(errorCode(symbol, status, text), text === '' ? `${symbol}: status ${status}` : text)
    this.name = 'NativeError'
    this.nativeStatus = status
    this.symbol = symbol
  }
}

const CODES: Readonly<Record<number, ErrorCode>> = {
  [abi.STATUS_ERR_TIMEOUT]: 'update_timeout',
  [abi.STATUS_ERR_ABORTED]: 'aborted',
  [abi.STATUS_ERR_CHANGED]: 'file_changed',
  [abi.STATUS_ERR_LEASE]: 'checkpoint_busy',
  [abi.STATUS_ERR_DEVICE]: 'device_error',
  [abi.STATUS_ERR_DEVICE_LOST]: 'device_lost',
  [abi.STATUS_ERR_UNSUPPORTED]: 'not_supported',
}

/** Functions whose memory is the host's; of the others it is the device's. */
const HOST_MEMORY = /^ckpt_(buffer|file|p2p|read|refcounter)_/
/** Functions whose I/O is on the user's files; of the others it is on shared memory. */
const USER_FILES = /^ckpt_(file|read)_|^ckpt_buffer_(map|gather)$/
/** Functions whose I/O is with the processes of other daemons, or tells how that went. */
const OTHER_PROCESSES = /^ckpt_(communicator|event|p2p|stream)_/

function errorCode(symbol: string, status: number, text: string): ErrorCode {
  if (status === abi.STATUS_ERR_MEMORY) {
    return HOST_MEMORY.test(symbol) ? 'host_memory_exhausted' : 'device_memory_exhausted'
  }
  if (status === abi.STATUS_ERR_IO) {
    if (OTHER_PROCESSES.test(symbol)) return 'node_lost'
    if (!USER_FILES.test(symbol)) return 'device_error'
    return /No such file|ENOENT/.test(text) ? 'file_not_found' : 'file_unreadable'
  }
  return CODES[status] ?? 'internal'
}
