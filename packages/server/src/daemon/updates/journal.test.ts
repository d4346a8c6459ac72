import { expect, test } from 'bun:test'
import { mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { TestDir } from '../registry/testing/fixture.ts'
import { Journal } from './journal.ts'

test('what could not be written is written when it is asked for again', async () => {
  const dir = new TestDir()
  try {
    const { journal } = await Journal.open(dir.path, dir.path)
    const path = join(dir.path, 'journal.json')
    // a file cannot take the place of a directory with something in it
    mkdirSync(path)
    writeFileSync(join(path, 'in-the-way'), '')
    await expect(journal.engines([])).rejects.toThrow()
    rmSync(path, { recursive: true })
    await journal.engines([])
    expect(JSON.parse(readFileSync(path, 'utf8')).engines).toEqual([])
  } finally {
    dir.remove()
  }
})
