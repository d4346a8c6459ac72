import { afterEach, beforeEach, expect, test } from 'bun:test'
import { mkdirSync, readdirSync, readFileSync, rmdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { TestDir } from '../registry/testing/fixture.ts'
import { Journal } from './journal.ts'
import { removeStaged, replaceFile } from './replace-file.ts'

let dir: TestDir

beforeEach(() => void (dir = new TestDir()))
afterEach(() => dir.remove())

test('a file is replaced as a whole, also by many at the same time', async () => {
  const path = join(dir.path, 'file')
  const texts = Array.from({ length: 20 }, (_, n) => String(n).repeat(1000 * n))
  await Promise.all(texts.map((text) => replaceFile(path, text)))
  expect(readdirSync(dir.path)).toEqual(['file'])
  expect(texts).toContain(readFileSync(path, 'utf8'))
})

test('one that cannot be replaced is said, and nothing is left', async () => {
  const path = join(dir.path, 'file')
  mkdirSync(path)
  await expect(replaceFile(path, 'text')).rejects.toThrow('EISDIR')
  await expect(replaceFile(join(dir.path, 'gone', 'file'), 'text')).rejects.toThrow('ENOENT')
  expect(readdirSync(dir.path)).toEqual(['file'])
})

test('what a crash has left is removed, where there is a directory', async () => {
  for (const name of ['file', 'file.1.2', 'file.1', 'file.1.2.3', 'file2.1.2']) {
    writeFileSync(join(dir.path, name), '')
  }
  await removeStaged(join(dir.path, 'file'))
  expect(readdirSync(dir.path).sort()).toEqual(['file', 'file.1', 'file.1.2.3', 'file2.1.2'])
  await removeStaged(join(dir.path, 'gone', 'file'))
})

test('so it is with the journal', async () => {
  writeFileSync(join(dir.path, 'journal.json.1.2'), '{')
  const { journal } = await Journal.open(dir.path, dir.path)
  expect(readdirSync(dir.path)).toEqual([])
  const path = join(dir.path, 'journal.json')
  mkdirSync(path)
  const mark = { url: 'http://127.0.0.1:1', uds: null, update_id: 'one', dialect: null } as const
  const marks = [{ ...mark, paused: false, restart_needed: false, listener: null }]
  await expect(journal.engines(marks)).rejects.toThrow('EISDIR')
  expect(readdirSync(dir.path)).toEqual(['journal.json'])
  rmdirSync(path)
  await journal.engines([...marks, ...marks])
  expect(JSON.parse(readFileSync(path, 'utf8')).engines).toHaveLength(2)
})
