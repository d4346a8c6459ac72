import { CkptError } from '../api/errors.ts'
import { dtypeOfTorch, ofTorchView } from '../safetensors/dtypes.ts'
import {
  type PickleValue,
  PickleGlobal,
  PickleObject,
  PickleTuple,
  loadPickle,
} from './pickle-machine.ts'
import { IPC_HANDLE_BYTES, type RingHandle } from './pickle-writer.ts'

/** A message of the conversation as the reference engine understands it. */
export type EngineMessage =
  | ({ readonly type: 'handle' } & RingHandle)
  | {
      readonly type: 'list'
      /** `dtype` is an index into DTYPES, `offset` in bytes from the start of the ring. */
      readonly tensors: readonly {
        readonly name: string
        readonly dtype: number
        readonly shape: readonly number[]
        readonly offset: number
      }[]
    }
  | { readonly type: 'none' }
  | { readonly type: 'error'; readonly text: string }

type ListedTensor = Extract<EngineMessage, { type: 'list' }>['tensors'][number]

const GLOBALS = new Set([
  'torch.multiprocessing.reductions.rebuild_cuda_tensor',
  'torch.Tensor',
  'torch.Size',
  'torch.storage.UntypedStorage',
  'torch.storage.TypedStorage',
  'builtins.RuntimeError',
])
const CALLABLES = new Set(['torch.Size', 'builtins.RuntimeError'])

const HANDLE_ARGUMENTS = 15
/**
 * torch puts a version and a kind before the handle: `c` for cudaMalloc memory (`e`, expandable
 * segments, is no IPC handle).
 */
const VERSIONED_PREFIX_BYTES = 2
const KIND_CUDA_MALLOC = 0x63

/**
 * Reads one message of the conversation, whoever wrote it (this daemon or checkpoint-engine's own
 * server), with an allow-list: nothing is imported or called, whatever is not of the protocol is
 * refused.
 *
 * @throws CkptError `engine_protocol`
 */
export function readEngineMessage(body: Uint8Array): EngineMessage {
  const value = loadPickle(body, { allowed, callable: (name) => CALLABLES.has(name) })
  if (value === null) return { type: 'none' }
  if (value instanceof PickleTuple) return readHandle(value)
  if (Array.isArray(value)) return { type: 'list', tensors: value.map(readTensor) }
  if (value instanceof PickleObject && value.callable === 'builtins.RuntimeError') {
    const text = value.args.find((argument) => typeof argument === 'string')
    return { type: 'error', text: text ?? '' }
  }
  throw refused('it is neither a handle, a tensor list, None nor a RuntimeError')
}

function allowed(name: string): boolean {
  return GLOBALS.has(name) || (name.startsWith('torch.') && dtypeOfTorch(name) >= 0)
}

function readHandle(pair: PickleTuple): EngineMessage {
  const [rebuild, args] = pair.items
  const isRebuild =
    rebuild instanceof PickleGlobal &&
    rebuild.name === 'torch.multiprocessing.reductions.rebuild_cuda_tensor'
  if (pair.items.length !== 2 || !isRebuild || !(args instanceof PickleTuple)) {
    throw refused('a handle is (rebuild_cuda_tensor, arguments)')
  }
  if (args.items.length !== HANDLE_ARGUMENTS) {
    throw refused(
      `rebuild_cuda_tensor takes ${HANDLE_ARGUMENTS} arguments, not ${args.items.length}`,
    )
  }
  const [, size, stride, offset, , dtype, , handle, bytes, storageOffset, , counter] = args.items
  if (!(dtype instanceof PickleGlobal) || dtype.name !== 'torch.uint8') {
    throw refused('the ring is of torch.uint8')
  }
  const shape = integers(size)
  const plain = offset === 0 && storageOffset === 0 && shape?.length === 1 && shape[0] === bytes
  if (!plain || integers(stride)?.join() !== '1') {
    throw refused('the ring is one contiguous allocation from its start')
  }
  if (!(handle instanceof Uint8Array)) throw refused('the IPC handle is bytes')
  const refcounter = counter instanceof Uint8Array ? new TextDecoder().decode(counter) : ''
  return { type: 'handle', handle: rawHandle(handle), bytes: bytes as number, refcounter }
}

function rawHandle(handle: Uint8Array): Uint8Array {
  if (handle.length === IPC_HANDLE_BYTES) return handle
  const versioned =
    handle.length === VERSIONED_PREFIX_BYTES + IPC_HANDLE_BYTES && handle[1] === KIND_CUDA_MALLOC
  if (!versioned) throw refused(`an IPC handle has ${IPC_HANDLE_BYTES} bytes, not ${handle.length}`)
  return handle.subarray(VERSIONED_PREFIX_BYTES)
}

function readTensor(value: PickleValue): ListedTensor {
  if (!(value instanceof Map)) throw refused('a tensor list holds dictionaries')
  const name = value.get('name')
  const torch = value.get('dtype')
  const offset = value.get('offset')
  const shape = integers(value.get('shape'))
  if (typeof name !== 'string') throw refused('a tensor has a name')
  if (!(torch instanceof PickleGlobal)) throw refused(`tensor ${name} has a dtype of torch`)
  if (shape === null) throw refused(`tensor ${name} has a shape`)
  if (typeof offset !== 'number' || offset < 0) throw refused(`tensor ${name} has an offset`)
  const view = ofTorchView(torch.name, shape)
  if (view === null) throw refused(`tensor ${name} has an unknown dtype ${torch.name}`)
  return { name, dtype: view.dtype, shape: view.shape, offset }
}

/** A tuple, list or torch.Size of non-negative integers; null when it is something else. */
function integers(value: PickleValue | undefined): number[] | null {
  const isSize = value instanceof PickleObject && value.callable === 'torch.Size'
  const sequence = isSize ? value.args[0] : value
  const items = sequence instanceof PickleTuple ? sequence.items : sequence
  if (!Array.isArray(items)) return null
  return items.every((item) => typeof item === 'number' && item >= 0) ? (items as number[]) : null
}

function refused(reason: string): CkptError {
  return new CkptError('engine_protocol', `a message that is not of the protocol: ${reason}`)
}
