import { expect, test } from 'bun:test'
import { encodePlacementMap, type MapCopy } from './encode-map.ts'
import { tensorCopies, summariseMap } from './map-summary.ts'
import { decodePlacementMap } from './placement-map.ts'

const PLAIN: MapCopy = {
  tensor: 0,
  source: 0,
  allocation: 1,
  destination: 8,
  run: 12,
  sizes: [1, 1, 1],
  sourceStrides: [0, 0, 0],
  destinationStrides: [0, 0, 0],
}
const STRIDED: MapCopy = {
  tensor: 2,
  source: 4,
  allocation: 0,
  destination: 2 ** 40,
  run: 2,
  sizes: [1, 2, 3],
  sourceStrides: [0, 6, 2],
  destinationStrides: [0, 32, 8],
}
const TENSORS = ['a', 'nothing', 'b'].map((name) => ({ name, dtype: 'uint8', shape: [2, 6] }))

function mapOf(copies: readonly MapCopy[]) {
  return decodePlacementMap(encodePlacementMap(TENSORS, [2 ** 41, 20], copies))
}

test('a summary counts what the copies bring, with every index of their sizes', () => {
  expect(summariseMap(mapOf([PLAIN, STRIDED]))).toEqual({
    tensors: 3,
    copies: 2,
    bytes: 12 + 2 * 2 * 3,
    allocationBytes: [2 ** 41, 20],
  })
  expect(summariseMap(mapOf([]))).toMatchObject({ tensors: 3, copies: 0, bytes: 0 })
})

test('bytes that a number does not hold exactly are not told', () => {
  const endless = { ...PLAIN, sizes: [2 ** 52, 2, 1] }
  expect(() => summariseMap(mapOf([endless]))).toThrow(
    expect.objectContaining({ code: 'engine_protocol' }),
  )
})

test('the copies of one tensor are rows as they were written', () => {
  const map = mapOf([STRIDED, PLAIN, { ...STRIDED, destination: 0 }])
  expect(tensorCopies(map, 'b')).toEqual({
    ...TENSORS[2]!,
    copies: [STRIDED, { ...STRIDED, destination: 0 }],
  })
  expect(tensorCopies(map, 'a')?.copies).toEqual([PLAIN])
  expect(tensorCopies(map, 'nothing')?.copies).toEqual([])
  expect(tensorCopies(map, 'c')).toBeNull()
})
