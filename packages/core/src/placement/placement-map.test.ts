import { expect, test } from 'bun:test'
import { encodePlacementMap, MAP_COLUMNS, type MapCopy } from './encode-map.ts'
import { packFrame, unpackFrame } from './frame.ts'
import { decodePlacementMap } from './placement-map.ts'

const COPY: MapCopy = {
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

function encodeMap(
  names: readonly string[],
  allocationBytes: readonly number[],
  copies: readonly MapCopy[],
  changed: object = {},
): Uint8Array {
  const tensors = names.map((name) => ({ name, dtype: 'bfloat16', shape: [2, 3] }))
  const { head, body } = unpackFrame(encodePlacementMap(tensors, allocationBytes, copies))!
  return packFrame({ ...(head as object), ...changed }, body)
}

test('a map is read as it was written', () => {
  const map = decodePlacementMap(encodeMap(['a'], [END], [COPY, { ...COPY, run: 1 }]))
  expect(map.tensors).toEqual(['a'])
  expect(map.dtypes).toEqual(['bfloat16'])
  expect(map.shapes).toEqual([[2, 3]])
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
  ['a dtype less', () => encodeMap(['a'], [END], [COPY], { dtypes: [] }), 'not every tensor'],
  ['another format', () => encodeMap(['a'], [END], [COPY], { format: 1 }), 'format must be 2'],
  ['another key', () => encodeMap(['a'], [END], [COPY], { more: 1 }), 'more must be removed'],
  [
    'another order of columns',
    () => encodeMap(['a'], [END], [COPY], { columns: MAP_COLUMNS.toReversed() }),
    'it has other columns',
  ],
  ['a name twice', () => encodeMap(['a', 'a'], [END], [COPY]), 'a tensor is named twice'],
  ['too small memory', () => encodeMap(['a'], [END - 1], [COPY]), 'goes beyond its allocation'],
  ['no memory', () => encodeMap(['a'], [END], [{ ...COPY, allocation: 1 }]), 'names no allocation'],
  ['no tensor', () => encodeMap([], [END], [COPY]), 'copy 0 names no tensor'],
  [
    'a byte written without end',
    () =>
      encodeMap(['a'], [END], [{ ...COPY, sizes: [2 ** 40, 1, 1], destinationStrides: [0, 0, 0] }]),
    'copy 0 writes a byte twice',
  ],
  ['an empty copy', () => encodeMap(['a'], [END], [{ ...COPY, run: 0 }]), 'copy 0 is empty'],
  ['less than nothing', () => encodeMap(['a'], [END], [{ ...COPY, source: -1 }]), 'out of range'],
  ['too much', () => encodeMap(['a'], [END], [{ ...COPY, source: 2 ** 53 }]), 'out of range'],
])('%s is no map', (_, body, words) => {
  expect(() => decodePlacementMap(body())).toThrow(words)
})
