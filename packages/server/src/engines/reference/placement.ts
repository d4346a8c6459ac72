// Without the schemas, as `worker-conversation.ts`.
import { encodePlacementMap, type MapCopy, type MapTensor } from '@ckpt/core/placement/encode-map'
import { DTYPES, torchView } from '@ckpt/core/safetensors/dtypes'
import type { Parameters, Place } from './parameters.ts'

/** Where a rank's parameters lie, as its worker tells a daemon that copies into them. */
export interface Placement {
  /** What another process opens each allocation with, in hex. */
  readonly handles: readonly string[]
  readonly map: Uint8Array
  /** Of the map. */
  readonly digest: string
}

interface Looked {
  /** Of the parameters when they were looked at. */
  readonly changes: number
  readonly placement: Placement | { readonly refused: string }
  readonly generation: string
}

/** To look at thousands of tensors takes tens of milliseconds, and most updates find them as they were. */
const looked = new WeakMap<Parameters, Looked>()

/**
 * The placement of the last whole update's tensors. What the rank still holds of earlier checkpoints is not part of it.
 * `refused`: there is none.
 */
export function placementOf(parameters: Parameters): Looked['placement'] {
  return lookAt(parameters).placement
}

/** Another one where an allocation or a tensor lies elsewhere, or is another. */
export function generationOf(parameters: Parameters): string {
  return lookAt(parameters).generation
}

function lookAt(parameters: Parameters): Looked {
  const { changes } = parameters
  const known = looked.get(parameters)
  if (known?.changes === changes) return known
  const generation = sha256(JSON.stringify([parameters.allocations(), parameters.places()]))
  const now = { changes, placement: place(parameters), generation }
  looked.set(parameters, now)
  return now
}

function place(parameters: Parameters): Looked['placement'] {
  const names = parameters.updatedNames
  const refused = whyNotPlaced(parameters)
  if (refused !== null) return { refused }
  const places = parameters.places().filter(({ name }) => names.has(name))
  const allocations = parameters.allocations()
  const tensors = places.flatMap((place) => mapTensor(place) ?? [])
  const copies = places.flatMap((place, tensor) => copyOf(place, tensor))
  const map = encodePlacementMap(
    tensors,
    allocations.map(({ bytes }) => bytes),
    copies,
  )
  return { handles: allocations.map(({ handle }) => handle), map, digest: sha256(map) }
}

/** Null: a daemon can copy straight into the parameters. */
export function whyNotPlaced(parameters: Parameters): string | null {
  const names = parameters.updatedNames
  if (names.size === 0) return 'no update has gone through'
  const other = parameters
    .places()
    .find((place) => names.has(place.name) && mapTensor(place) === null)
  if (other === undefined) return null
  return `${other.name} is ${DTYPES[other.dtype]?.name} [${other.shape}], which torch cannot hold`
}

function mapTensor({ name, dtype, shape }: Place): MapTensor | null {
  const view = torchView(dtype, shape)
  return view === null ? null : { name, dtype: view.torch, shape: view.shape }
}

/** Nothing is copied for a part without bytes. */
function copyOf(place: Place, tensor: number): MapCopy[] {
  const { allocation, destination } = place
  const { offset: source, width, pitch, height, bytes } = place.shard
  if (bytes === 0) return []
  return [
    {
      tensor,
      source,
      allocation,
      destination,
      run: width,
      sizes: [1, 1, height],
      sourceStrides: [0, 0, height > 1 ? pitch : 0],
      destinationStrides: [0, 0, height > 1 ? width : 0],
    },
  ]
}

function sha256(content: string | Uint8Array): string {
  return new Bun.CryptoHasher('sha256').update(content).digest('hex')
}
