import { copyEnd, type PlacementMap, type TensorTable } from '@ckpt/core'

/** Takes source bytes `[from, from + bytes)`, which belong to an allocation from `at` on. */
export type TakeRow = (from: number, at: number, bytes: number) => void

/** Writes source bytes `[from, from + bytes)` to `target` from `at` on. */
export type CopyBytes = (target: Uint8Array, at: number, from: number, bytes: number) => void

/** SHA-256 (hex) of each allocation once the map is followed, row by row and without a plan; `filler` is where nothing belongs. */
export function placedDigests(
  map: PlacementMap,
  table: TensorTable,
  copyBytes: CopyBytes,
  filler: number,
): string[] {
  const room = new Uint8Array(Math.max(0, ...map.allocationBytes))
  return map.allocationBytes.map((bytes, allocation) => {
    const target = room.subarray(0, bytes).fill(filler)
    takeRows(map, table, allocation, (from, at, count) => copyBytes(target, at, from, count))
    return new Bun.CryptoHasher('sha256').update(target).digest('hex')
  })
}

/** Every row of every copy of the map that goes into one allocation. */
export function takeRows(
  map: PlacementMap,
  table: TensorTable,
  allocation: number,
  take: TakeRow,
): void {
  const rows = new Map(table.names.map((name, row) => [name, row]))
  for (let copy = 0; copy < map.run.length; copy++) {
    if (map.allocation[copy] !== allocation) continue
    const row = rows.get(map.tensors[map.tensor[copy] as number] as string) as number
    const end = copyEnd(map, copy, map.source, map.sourceStrides)
    if (end > (table.bytes[row] as number)) throw new Error(`${table.names[row]} is smaller`)
    takeCopy(map, copy, table.offsets[row] as number, take)
  }
}

function takeCopy(map: PlacementMap, copy: number, tensorOffset: number, take: TakeRow): void {
  const source = tensorOffset + (map.source[copy] as number)
  const destination = map.destination[copy] as number
  const bytes = map.run[copy] as number
  const [a = 1, b = 1, c = 1] = map.sizes.map((sizes) => sizes[copy])
  const [fromA = 0, fromB = 0, fromC = 0] = map.sourceStrides.map((strides) => strides[copy])
  const [atA = 0, atB = 0, atC = 0] = map.destinationStrides.map((strides) => strides[copy])
  for (let i = 0; i < a; i++) {
    for (let j = 0; j < b; j++) {
      const from = source + i * fromA + j * fromB
      const at = destination + i * atA + j * atB
      for (let k = 0; k < c; k++) take(from + k * fromC, at + k * atC, bytes)
    }
  }
}
