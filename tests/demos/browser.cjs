// A visitor's way through the page in Debian's Chromium: node browser.cjs ADDRESS CHROMIUM OUT [UPLOAD]
// Prints one line of json: the answer, hosts asked beside the page's, errors of the console. Screenshots lie in OUT.
const { chromium } = require("playwright-core");

async function main([address, executablePath, out, upload]) {
  const browser = await chromium.launch({ executablePath, args: ["--no-sandbox", "--use-angle=swiftshader"] });
  const page = await browser.newPage({ viewport: { width: 1280, height: 900 } });
  const outside = new Set(), errors = [];
  page.on("request", (request) => {
    const url = new URL(request.url());
    if (url.protocol.startsWith("http") && url.host !== new URL(address).host) outside.add(url.host);
  });
  page.on("console", (message) => message.type() === "error" && errors.push(message.text()));
  page.on("pageerror", (error) => errors.push(String(error)));
  await page.goto(address);
  await page.waitForSelector("#stage img", { timeout: 60000 });
  await page.waitForTimeout(500);
  await page.screenshot({ path: `${out}/start.png` });

  const box = page.locator("#question textarea");
  const question = await box.inputValue();
  const before = await page.locator("#stage img").getAttribute("src");
  await box.press("Enter");
  await page.waitForFunction((src) => document.querySelector("#stage img").src !== src && document.querySelector("#chat small"), before, { timeout: 120000 });
  await page.waitForTimeout(700);
  await page.screenshot({ path: `${out}/answer.png` });
  const answer = await page.locator("#chat .bot").last().innerText();

  if (upload) {
    await page.locator("#file input[type=file]").setInputFiles(upload);
    await page.waitForFunction(() => document.querySelector("#note").innerText.includes("⚠"), null, { timeout: 60000 });
    await page.screenshot({ path: `${out}/refused.png` });
  }
  await page.locator("#suggestions button").last().click();
  await page.waitForFunction(() => document.querySelectorAll("#chat small").length === 2, null, { timeout: 120000 });
  await page.waitForTimeout(700);
  const tool = page.locator("#chat").getByText("Tool: detect_hands");
  const called = (await tool.count()) > 0;
  if (called) await tool.first().click();
  await page.waitForTimeout(700);
  await page.screenshot({ path: `${out}/tool.png`, fullPage: true });
  const boxes = [];
  for (const words of ["Where is my right hand?", "Where are my hands?"]) {
    const asked = await page.locator("#chat small").count();
    await box.pressSequentially(words);
    await box.press("Enter");
    await page.waitForFunction((n) => document.querySelectorAll("#chat small").length > n, asked, { timeout: 120000 });
    await page.waitForTimeout(700);
    boxes.push(await box.inputValue());
  }
  await page.setViewportSize({ width: 390, height: 844 });
  await page.waitForTimeout(700);
  await page.screenshot({ path: `${out}/narrow.png`, fullPage: true });
  const wide = await page.evaluate(() => [document.documentElement.scrollWidth, window.innerWidth]);
  await browser.close();
  console.log(JSON.stringify({ question, answer, called, boxes, outside: [...outside], errors, wide }));
}

main(process.argv.slice(2)).catch((error) => {
  console.error(error);
  process.exit(1);
});
