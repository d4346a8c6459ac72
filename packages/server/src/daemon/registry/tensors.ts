import {
  CkptError,
  dtypeIndex,
  itemBytes,
  ofTorchView,
  type TensorsRequest,
  tensorBytes,
} from '@ckpt/core'
import type { AdoptRequest, AdoptTensor } from '../memory/protocol.ts'
import type { LentBuffer, LentBuffers } from './lent.ts'

type BufferTensors = TensorsRequest['buffers'][number]
type RequestedTensor = BufferTensors['tensors'][number]

/**
 * Checks what a trainer says about its buffers: known buffers of this checkpoint without a version in them, known dtypes,
 * aligned tensors within the buffer that do not overlap, each name once.
 *
 * @throws CkptError `bad_request`, `tensor_conflict`, `checkpoint_busy` (the buffer holds a version)
 */
export function checkTensors(
  name: string,
  requested: readonly BufferTensors[],
  lent: LentBuffers,
): AdoptRequest['buffers'] {
  const places = new Map<string, string>()
  const used = new Set<string>()
  return requested.map(({ id, tensors }) => {
    const buffer = lent.get(id)
    if (buffer === undefined || buffer.name !== name) {
      throw new CkptError('bad_request', `checkpoint '${name}' has no buffer '${id}'`)
    }
    if (used.has(id)) throw new CkptError('bad_request', `buffer '${id}' is named twice`)
    used.add(id)
    if (buffer.part !== null) {
      throw new CkptError(
        'checkpoint_busy',
        `buffer '${id}' holds a registered version of '${name}': ask for new buffers`,
      )
    }
    const placed = tensors.map((tensor) => {
      const place = `buffer '${id}' at ${tensor.offset}`
      const other = places.get(tensor.name)
      if (other !== undefined) {
        throw new CkptError(
          'tensor_conflict',
          `tensor '${tensor.name}' is in ${other} and in ${place}`,
          {
            tensor: tensor.name,
          },
        )
      }
      places.set(tensor.name, place)
      return placeTensor(tensor, buffer)
    })
    requireDisjoint(id, placed)
    return { buffer: buffer.buffer, tensors: placed }
  })
}

function placeTensor(tensor: RequestedTensor, buffer: LentBuffer): AdoptTensor {
  const { name, offset } = tensor
  const refuse = (reason: string) =>
    new CkptError('bad_request', `tensor '${name}' in buffer '${buffer.id}': ${reason}`, {
      tensor: name,
    })
  const known = dtypeIndex(tensor.dtype)
  const view =
    known >= 0 ? { dtype: known, shape: tensor.shape } : ofTorchView(tensor.dtype, tensor.shape)
  if (view === null) throw refuse(`unknown dtype '${tensor.dtype}'`)
  const bytes = tensorBytes(view.dtype, view.shape)
  if (bytes === null) {
    throw refuse(`${tensor.dtype} [${tensor.shape.join(', ')}] is no whole number of bytes`)
  }
  if (offset % itemBytes(view.dtype) !== 0) {
    throw refuse(`offset ${offset} is not a multiple of its item size ${itemBytes(view.dtype)}`)
  }
  if (offset + bytes > buffer.bytes) {
    throw refuse(`[${offset}, ${offset + bytes}) is beyond the buffer's ${buffer.bytes} bytes`)
  }
  return { name, dtype: view.dtype, shape: view.shape, bytes, offset }
}

function requireDisjoint(id: string, tensors: readonly AdoptTensor[]): void {
  const sorted = tensors.filter(({ bytes }) => bytes > 0).sort((a, b) => a.offset - b.offset)
  for (const [index, tensor] of sorted.entries()) {
    const before = sorted[index - 1]
    if (before === undefined || before.offset + before.bytes <= tensor.offset) continue
    throw new CkptError(
      'bad_request',
      `tensors '${before.name}' and '${tensor.name}' overlap in buffer '${id}'`,
      { tensor: tensor.name },
    )
  }
}
