import { expect, test } from 'bun:test'
import { CkptError } from '../api/errors.ts'
import { parseIndex } from './index-file.ts'

test('maps tensors to files', () => {
  const text = `{"metadata":{"total_size":12},
    "weight_map":{"b":"m-2.safetensors","a":"m-1.safetensors"}}`
  expect([...parseIndex(text, 'f').weightMap]).toEqual([
    ['b', 'm-2.safetensors'],
    ['a', 'm-1.safetensors'],
  ])
  expect(parseIndex('{"weight_map":{}}', 'f').weightMap.size).toBe(0)
})

test.each([
  ['', undefined, 'expected an object'],
  ['{}', undefined, "'weight_map' is missing"],
  ['{"weight_map":[]}', undefined, 'expected an object'],
  ['{"weight_map":{"a":1}}', 'a', 'expected a string'],
  ['{"weight_map":{"a":"x","a":"y"}}', 'a', 'twice'],
  ['{"weight_map":{},"weight_map":{}}', undefined, 'twice'],
  ['{"weight_map":{"a":"/etc/passwd"}}', 'a', 'not the name of a file beside'],
  ['{"weight_map":{"a":"../x"}}', 'a', 'not the name of a file beside'],
  ['{"weight_map":{"a":""}}', 'a', 'not the name of a file beside'],
  ['{"weight_map":{}} x', undefined, 'more text'],
])('%p is refused', (text, tensor, reason) => {
  let error: unknown
  try {
    parseIndex(text, 'dir/model.safetensors.index.json')
  } catch (thrown) {
    error = thrown
  }
  expect(error).toBeInstanceOf(CkptError)
  const { failure } = error as CkptError
  expect(failure.code).toBe('safetensors_invalid')
  expect(failure.tensor).toBe(tensor)
  expect(failure.message).toStartWith('dir/model.safetensors.index.json: ')
  expect(failure.message).toContain(reason)
})
