import { expect, test } from 'bun:test'
import { join } from 'node:path'
import { TestDir } from '../daemon/registry/testing/fixture.ts'
import { run } from '../../../../test/support/process.ts'
import { ncclVersion, openNccl, openUcx } from './library-check.ts'

/** A shared library of these functions. */
async function compile(dir: TestDir, name: string, source: string): Promise<string> {
  const path = join(dir.path, name)
  const file = dir.write(`${name}.c`, new TextEncoder().encode(source))
  await run(['cc', '-shared', '-fPIC', '-o', path, file])
  return path
}

test('the version of a library that opens is what it says itself', async () => {
  const dir = new TestDir()
  try {
    const nccl = await compile(
      dir,
      'libnccl.so.2',
      'int ncclGetVersion(int *version) { *version = 22809; return 0; }',
    )
    const broken = await compile(dir, 'broken.so', 'int ncclGetVersion(int *v) { return 3; }')
    const ucx = await compile(
      dir,
      'libucp.so.0',
      'const char *ucp_get_version_string(void) { return "1.16.0"; }',
    )
    const missing = join(dir.path, 'libnone.so')
    expect(openNccl([missing, nccl])).toEqual({ name: nccl, version: '2.28.9' })
    expect(openNccl([broken, nccl])).toEqual({ name: broken, version: null })
    // without the function that tells
    expect(openNccl([ucx])).toEqual({ name: ucx, version: null })
    expect(openUcx([ucx])).toEqual({ name: ucx, version: '1.16.0' })
    expect(openUcx([missing])).toBeNull()
  } finally {
    dir.remove()
  }
})

test.each([
  [22809, '2.28.9'],
  [23203, '2.32.3'],
  [20000 + 900, '2.9.0'],
  [2804, '2.8.4'],
])('NCCL calls %d %s', (code, version) => {
  expect(ncclVersion(code)).toBe(version)
})
