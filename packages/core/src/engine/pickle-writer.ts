import { CkptError } from '../api/errors.ts'
import { assert } from '../checkpoint/assert.ts'
import type { TensorTable } from '../checkpoint/table.ts'
import type { Plan } from '../plan/plan.ts'
import { DTYPES, torchView } from '../safetensors/dtypes.ts'
import { OP, PickleStream } from './pickle-stream.ts'

/** About what one tensor takes in a list: a name of 60 characters, two dimensions. */
const TENSOR_BYTES = 96

/** Bytes of a `cudaIpcMemHandle_t`. */
export const IPC_HANDLE_BYTES = 64

export interface RingHandle {
  /** The raw 64-byte IPC handle of the ring. */
  readonly handle: Uint8Array
  /** Bytes of the ring. */
  readonly bytes: number
  /**
   * Name of the POSIX shared memory that holds torch's reference counter, with its slash:
   * `/ckpt-...`.
   */
  readonly refcounter: string
}

/**
 * The first message of a conversation: `(rebuild_cuda_tensor, args)` with the 15 arguments that
 * torch's function has taken since 2.1. The worker replaces the device (argument 7). The handle is
 * the raw one, which every torch takes; no event is waited for.
 */
export function pickleHandle(ring: RingHandle): Uint8Array {
  const stream = new PickleStream()
  stream.global('torch.multiprocessing.reductions', 'rebuild_cuda_tensor')
  writeRebuildArguments(stream, ring, { offset: 0, bytes: ring.bytes })
  stream.op(OP.TUPLE2)
  return stream.finish()
}

/**
 * What vLLM's own weight transfer takes as `ipc_handles_pickled` since 0.22: `{uuid: args}` of a part of the ring.
 *
 * @param uuid of the device, without `GPU-`
 */
export function pickleTransferHandle(uuid: string, ring: RingHandle, part: RingPart): Uint8Array {
  const stream = new PickleStream()
  stream.op(OP.EMPTY_DICT)
  stream.text(uuid)
  writeRebuildArguments(stream, ring, part)
  stream.op(OP.SETITEM)
  return stream.finish()
}

/** Bytes `[offset, offset + bytes)` of the ring. */
export interface RingPart {
  readonly offset: number
  readonly bytes: number
}

function writeRebuildArguments(stream: PickleStream, ring: RingHandle, part: RingPart): void {
  assert(ring.handle.length === IPC_HANDLE_BYTES, 'an IPC handle has 64 bytes')
  assert(/^\/[\x21-\x2e\x30-\x7e]{1,254}$/.test(ring.refcounter), 'a shared memory name is /name')
  stream.op(OP.MARK)
  stream.global('torch', 'Tensor')
  stream.intTuple([part.bytes]) // size
  stream.intTuple([1]) // stride
  stream.int(part.offset)
  stream.global('torch.storage', 'UntypedStorage')
  stream.global('torch', 'uint8')
  stream.int(0) // device
  stream.bytes(ring.handle)
  stream.int(ring.bytes) // storage size
  stream.int(0) // storage offset
  stream.bool(false) // requires_grad
  stream.bytes(new TextEncoder().encode(ring.refcounter))
  stream.int(0) // reference counter offset
  stream.bytes(new Uint8Array(0)) // event handle
  stream.bool(false) // event_sync_required
  stream.op(OP.TUPLE)
}

/**
 * The tensor list of one bucket: `[{name, dtype, shape, offset}, ...]`, offsets in bytes from the
 * start of the ring.
 *
 * @throws CkptError `not_supported` for a tensor that torch has no type for (safetensors' 6-bit
 * floats)
 */
export function pickleList(plan: Plan, table: TensorTable, bucket: number): Uint8Array {
  assert(bucket >= 0 && bucket < plan.bucketCount, `bucket ${bucket} is one of the plan's`)
  const first = plan.bucketFirstTensor[bucket] as number
  const end = plan.bucketFirstTensor[bucket + 1] as number
  const stream = new PickleStream(64 + TENSOR_BYTES * (end - first))
  stream.op(OP.EMPTY_LIST)
  stream.op(OP.MARK)
  for (let position = first; position < end; position++) {
    const tensor = plan.order[position] as number
    writeTensor(stream, table, tensor, plan.tensorRing[tensor] as number)
  }
  stream.op(OP.APPENDS)
  return stream.finish()
}

function writeTensor(
  stream: PickleStream,
  table: TensorTable,
  tensor: number,
  offset: number,
): void {
  const name = table.names[tensor] as string
  const dtype = table.dtypes[tensor] as number
  const view = torchView(dtype, table.shapes[tensor] as readonly number[])
  if (view === null) throw unknownToTorch(name, dtype)
  stream.op(OP.EMPTY_DICT)
  stream.op(OP.MARK)
  stream.key('name')
  stream.text(name)
  stream.key('dtype')
  stream.global('torch', view.torch)
  stream.key('shape')
  stream.intTuple(view.shape)
  stream.key('offset')
  stream.int(offset)
  stream.op(OP.SETITEMS)
}

function unknownToTorch(name: string, dtype: number): CkptError {
  const message = `torch has no type for ${DTYPES[dtype]?.name}, so no engine can take tensor ${name}`
  return new CkptError('not_supported', message, { tensor: name })
}

/** The end of the lists, and in D4 the leave to run the post hook. */
export function pickleNone(): Uint8Array {
  const stream = new PickleStream(4)
  stream.op(OP.NONE)
  return stream.finish()
}

/** What a worker raises when it reads it instead of a list or `None`. */
export function pickleRuntimeError(text: string): Uint8Array {
  const stream = new PickleStream()
  stream.global('builtins', 'RuntimeError')
  stream.text(text)
  stream.op(OP.TUPLE1)
  stream.op(OP.REDUCE)
  return stream.finish()
}
