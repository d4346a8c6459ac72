import { expect, test } from 'bun:test'
import { decodePlacementMap } from './placement-map.ts'
import { COLUMNS, type CopyDraw, encodeMap } from './placement-map-encoding.test.ts'

const COPY: CopyDraw = {
  tensor: 0,
  source: 4,
  allocation: 0,
  destination: 2 ** 40,
  run: 2,
  sizes: [1, 2, 3],
  sourceStrides: [0, 6, 2],
  destinationStrides: [0, 32, 8],
}
const END = COPY.destination + 32 + 2 * 8 + 2

test('a map is read as it was written', () => {
  const map = decodePlacementMap(encodeMap(['a'], [END], [COPY, { ...COPY, run: 1 }]))
  expect(map.tensors).toEqual(['a'])
  expect(map.allocationBytes).toEqual([END])
  expect([...map.destination]).toEqual([2 ** 40, 2 ** 40])
  expect([...map.run]).toEqual([2, 1])
  expect(map.sizes.map((sizes) => sizes[0])).toEqual([1, 2, 3])
  expect(map.sourceStrides.map((strides) => strides[0])).toEqual([0, 6, 2])
  expect(map.destinationStrides.map((strides) => strides[0])).toEqual([0, 32, 8])
})

test.each([
  ['nothing', () => new Uint8Array(), 'it is cut off'],
  ['a part of it', () => encodeMap(['a'], [END], [COPY]).subarray(0, -1), 'it is cut off'],
  ['a length beyond it', () => Uint8Array.of(255, 255, 255, 255), 'it is cut off'],
  ['no JSON', () => Uint8Array.of(1, 0, 0, 0, 123), 'its head is no JSON'],
  ['another format', () => encodeMap(['a'], [END], [COPY], { format: 2 }), 'format must be 1'],
  ['another key', () => encodeMap(['a'], [END], [COPY], { more: 1 }), 'more must be removed'],
  [
    'another order of columns',
    () => encodeMap(['a'], [END], [COPY], { columns: COLUMNS.toReversed() }),
    'it has other columns',
  ],
  ['a name twice', () => encodeMap(['a', 'a'], [END], [COPY]), 'a tensor is named twice'],
  ['too small memory', () => encodeMap(['a'], [END - 1], [COPY]), 'goes beyond its allocation'],
  ['no memory', () => encodeMap(['a'], [END], [{ ...COPY, allocation: 1 }]), 'names no allocation'],
  ['no tensor', () => encodeMap([], [END], [COPY]), 'copy 0 names no tensor'],
  ['an empty copy', () => encodeMap(['a'], [END], [{ ...COPY, run: 0 }]), 'copy 0 is empty'],
  ['less than nothing', () => encodeMap(['a'], [END], [{ ...COPY, source: -1 }]), 'out of range'],
  ['too much', () => encodeMap(['a'], [END], [{ ...COPY, source: 2 ** 53 }]), 'out of range'],
])('%s is no map', (_, body, words) => {
  expect(() => decodePlacementMap(body())).toThrow(words)
})
