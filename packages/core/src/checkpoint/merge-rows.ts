import { CkptError, type Phase } from '../api/errors.ts'
import { DTYPES } from '../safetensors/dtypes.ts'

/** A tensor and where it was found, e.g. a file or `rank 3`. */
export interface PlacedTensor {
  readonly name: string
  /** Index into `DTYPES`. */
  readonly dtype: number
  readonly shape: readonly number[]
  readonly bytes: number
  readonly place: string
}

/**
 * Keeps the first of the tensors that have the same name, in the order given.
 *
 * @throws CkptError `tensor_conflict`, with both places, when dtype, shape or bytes of two of them
 *   differ
 */
export function mergeRows<Row extends PlacedTensor>(rows: readonly Row[]): Row[] {
  const first = new Map<string, Row>()
  for (const row of rows) {
    const held = first.get(row.name)
    if (held === undefined) first.set(row.name, row)
    else requireAgreement(held, row, 'register')
  }
  return [...first.values()]
}

/** @throws CkptError `tensor_conflict`, with both places, when dtype, shape or bytes differ */
export function requireAgreement(a: PlacedTensor, b: PlacedTensor, phase: Phase): void {
  if (!agree(a, b)) throw conflict(a, b, phase)
}

function agree(a: PlacedTensor, b: PlacedTensor): boolean {
  return (
    a.dtype === b.dtype &&
    a.bytes === b.bytes &&
    a.shape.length === b.shape.length &&
    a.shape.every((dimension, i) => dimension === b.shape[i])
  )
}

function conflict(a: PlacedTensor, b: PlacedTensor, phase: Phase): CkptError {
  const message = `tensor '${a.name}' is ${describe(a)}, but ${describe(b)}`
  return new CkptError('tensor_conflict', message, { phase, tensor: a.name })
}

function describe({ dtype, shape, bytes, place }: PlacedTensor): string {
  return `${DTYPES[dtype]?.name} [${shape.join(', ')}] (${bytes} bytes) in ${place}`
}
