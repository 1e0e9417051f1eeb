// The families of pre-tokenizers that we know, as data. The patterns follow the models' own
// tokenizer.json files as llama.cpp reads them, because a model's ids must not depend on who
// tokenizes.
#include <string.h>

#include "engine/text/tokenizer_pre.h"

// The classes, as they stand inside brackets: ASCII members, then the byte that stands for all the
// others.
#define LETTER "A-Za-z\x81"
#define NUMBER "0-9\x82"
#define MARK   "\x83"
#define PUNCT  "!-#%-*,-/:;?@\\[-\\]_{}\x84"
#define SYMBOL "$+<->\\^`|~\x85"
// Letters that are not of the other case in ASCII.
#define UPPER "A-Z\x81"
#define LOWER "a-z\x81"
// Members of a step's own sets.
#define SET0 "\x90"
#define SET1 "\x91"

#define GPT2_WORDS                                                                                 \
    "'s|'t|'re|'ve|'m|'ll|'d| ?[" LETTER "]+| ?[" NUMBER "]+| ?[^\\s" LETTER NUMBER "]+"
#define CONTRACTION "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
#define BEFORE      "[^\\r\\n" LETTER NUMBER "]?"
#define OTHERS      " ?[^\\s" LETTER NUMBER "]+"
#define SPACES      "\\s+(?!\\S)|\\s+"
#define LINES       "\\s*[\\r\\n]+|" SPACES
#define BY_CLASS(digits)                                                                           \
    CONTRACTION "|" BEFORE "[" LETTER "]+|" digits "|" OTHERS "[\\r\\n]*|" LINES
// Words where a change from lower to upper case is a boundary, with what may follow one.
#define BY_CASE(extra, tail)                                                                       \
    BEFORE "[" UPPER extra "]*[" LOWER extra "]+" tail "|" BEFORE "[" UPPER extra                  \
           "]+[" LOWER extra "]*" tail
#define CJK_WORDS(others)                                                                          \
    "[!-/:-@\\[-`{-~][A-Za-z]+|[^\\r\\n" LETTER PUNCT SYMBOL "]?[" LETTER MARK                     \
    "]+| ?[" PUNCT SYMBOL "]+" others

#define STEP(name, ...) static const struct nb_pre_step name = {.pattern = __VA_ARGS__}

static const struct nb_code_range cjk_and_kana[] = {{0x4e00, 0x9fa5}, {0x3040, 0x30ff}, {0, 0}};
static const struct nb_code_range deepseek_cjk[] = {{0x800, 0x9fa5}, {0xac00, 0xd7ff}, {0, 0}};
static const struct nb_code_range fullwidth[] = {
    {0xff01, 0xff0f}, {0xff1a, 0xff5e}, {0x2018, 0x201f}, {0x3000, 0x3002}, {0, 0}};
static const struct nb_code_range sentence_marks[] = {
    {0x2026, 0x2026}, {0x3002, 0x3002}, {0xff0c, 0xff0c}, {0x3001, 0x3001},
    {0x964, 0x964},   {0x6d4, 0x6d4},   {0x60c, 0x60c},   {0, 0}};
// Letters that have case, in the Unicode version of the DeepSeek LLM tokenizer.
static const struct nb_code_range cased[] = {{0xb5, 0xb5},
                                             {0xc0, 0xd6},
                                             {0xd8, 0xf6},
                                             {0xf8, 0x1ba},
                                             {0x1bc, 0x1bf},
                                             {0x1c4, 0x293},
                                             {0x295, 0x2af},
                                             {0x370, 0x373},
                                             {0x376, 0x377},
                                             {0x37b, 0x37d},
                                             {0x37f, 0x37f},
                                             {0x386, 0x386},
                                             {0x388, 0x38a},
                                             {0x38c, 0x38c},
                                             {0x38e, 0x3a1},
                                             {0x3a3, 0x3f5},
                                             {0x3f7, 0x481},
                                             {0x48a, 0x52f},
                                             {0x531, 0x556},
                                             {0x10a0, 0x10c5},
                                             {0x13a0, 0x13f5},
                                             {0x13f8, 0x13fd},
                                             {0x1c90, 0x1cba},
                                             {0x1cbd, 0x1cbf},
                                             {0x1d00, 0x1d2b},
                                             {0x1d6b, 0x1d77},
                                             {0x1d79, 0x1d9a},
                                             {0x1e00, 0x1f15},
                                             {0x1f18, 0x1f1d},
                                             {0x1f20, 0x1f45},
                                             {0x1f48, 0x1f4d},
                                             {0x1f50, 0x1f57},
                                             {0x1f59, 0x1f59},
                                             {0x1f5b, 0x1f5b},
                                             {0x1f5d, 0x1f5d},
                                             {0x1f5f, 0x1f7d},
                                             {0x1f80, 0x1fb4},
                                             {0x1fb6, 0x1fbc},
                                             {0x1fbe, 0x1fbe},
                                             {0x1fc2, 0x1fc4},
                                             {0x1fc6, 0x1fcc},
                                             {0x1fd0, 0x1fd3},
                                             {0x1fd6, 0x1fdb},
                                             {0x1fe0, 0x1fec},
                                             {0x1ff2, 0x1ff4},
                                             {0x1ff6, 0x1ffc},
                                             {0x2102, 0x2102},
                                             {0x2107, 0x2107},
                                             {0x210a, 0x2113},
                                             {0x2115, 0x2115},
                                             {0x2119, 0x211d},
                                             {0x2124, 0x2124},
                                             {0x2126, 0x2126},
                                             {0x2128, 0x2128},
                                             {0x212a, 0x212d},
                                             {0x212f, 0x2134},
                                             {0x2139, 0x2139},
                                             {0x213c, 0x213f},
                                             {0x2145, 0x2149},
                                             {0x214e, 0x214e},
                                             {0x2183, 0x2184},
                                             {0x2c00, 0x2c7b},
                                             {0x2c7e, 0x2ce4},
                                             {0x2ceb, 0x2cee},
                                             {0x2cf2, 0x2cf3},
                                             {0xa640, 0xa66d},
                                             {0xa680, 0xa69b},
                                             {0xa722, 0xa76f},
                                             {0xa771, 0xa787},
                                             {0xa78b, 0xa78e},
                                             {0xab70, 0xabbf},
                                             {0xfb00, 0xfb06},
                                             {0xfb13, 0xfb17},
                                             {0xff21, 0xff3a},
                                             {0xff41, 0xff5a},
                                             {0x10400, 0x1044f},
                                             {0x104b0, 0x104d3},
                                             {0x104d8, 0x104fb},
                                             {0x10c80, 0x10cb2},
                                             {0x10cc0, 0x10cf2},
                                             {0x118a0, 0x118df},
                                             {0x1e900, 0x1e943},
                                             {0, 0}};

STEP(gpt2, GPT2_WORDS "|" SPACES);
STEP(digit, "[" NUMBER "]");
STEP(digits, "[" NUMBER "]+");
STEP(digits_by_3, "[" NUMBER "]{1,3}");
STEP(ascii_digits_3, "[0-9][0-9][0-9]");
STEP(newline, "[\\r\\n]");
STEP(lines, "[^\\n]+|\\n+");
STEP(punctuation, "[" PUNCT "$+<=>\\^~|]+");
STEP(falcon_punctuation, "[" PUNCT "$+<=>\\^~|`]+");
STEP(llama3, BY_CLASS("[" NUMBER "]{1,3}"));
STEP(qwen2, BY_CLASS("[" NUMBER "]"));
STEP(minicpm5, BY_CLASS("[" NUMBER "]+"));
STEP(qwen35, CONTRACTION "|" BEFORE "[" LETTER MARK "]+|[" NUMBER "]| ?[^\\s" LETTER MARK NUMBER
                         "]+[\\r\\n]*|" LINES);
STEP(ufakzeka, BEFORE "[" LETTER "]+|[" NUMBER "]|" OTHERS "[\\r\\n]*|" LINES);
STEP(bailing, "'(?:[sSdDmMtT]|[lL][lL]|[vV][eE]|[rR][eE])|" BEFORE "[" LETTER "]+|[" NUMBER
              "]|" OTHERS "[\\r\\n]*|\\s*[\\r\\n]|" SPACES);
STEP(seed_coder,
     CONTRACTION "|" BEFORE "[" LETTER "]+|[" NUMBER "]| ?[^\\s" LETTER NUMBER "\\r\\n]+|" LINES);
STEP(exaone_moe, CONTRACTION "|" BEFORE "[" LETTER "]" MARK "*+(?: ?[" LETTER "]" MARK
                             "*+)*+|[" NUMBER "]|" OTHERS "[\\r\\n/]?|\\s*[\\r\\n]|" SPACES);
STEP(tekken, BY_CASE("", "") "|[" NUMBER "]|" OTHERS "[\\r\\n/]*|" LINES);
STEP(gpt4o, BY_CASE("", CONTRACTION "?") "|[" NUMBER "]{1,3}|" OTHERS "[\\r\\n/]*|" LINES);
STEP(granite, BY_CASE(MARK, CONTRACTION "?") "|[" NUMBER "]{1,3}|" OTHERS "[\\r\\n/]*|" LINES);
STEP(cjk, "[" SET0 "]+", .sets = {cjk_and_kana});
STEP(deepseek3, CJK_WORDS("[\\r\\n]*|" LINES));
STEP(spark, CJK_WORDS("|[\\r\\n]|" SPACES));
STEP(deepseek_cjk_words, "[" SET0 "]+", .sets = {deepseek_cjk});
STEP(deepseek_words, "\\s?[A-Za-z" SET0 "]+", .sets = {cased});
STEP(deepseek_punctuation, "\\s?[!-/:-~" SET0 "]+", .sets = {fullwidth});
// Spaces at the end; the lookbehind keeps a run from being searched once for each of its
// characters.
STEP(deepseek_spaces, "(?<!\\s)\\s+\\z");
STEP(coder_words, "\\s?[" LETTER "]+");
STEP(coder_punctuation, "\\s?[" PUNCT "]+");
STEP(bloom, " ?[^(\\s|.,!?)" SET0 "]+", .sets = {sentence_marks});
STEP(sentinels, "<sentinel:[0-9]+>");
STEP(images, "IMGIMG[A-I]{1,4}Z");
STEP(blanks, "[\\t\\n]|    |  ");
STEP(single_marks, "[" PUNCT "!-/:-@\\[-`{-~]");

static const struct nb_pre families[] = {
    {.names = "default ", .steps = {&punctuation, &gpt2, &digits, &ascii_digits_3}},
    {.names = "gpt-2 phi-2 jina-es jina-de gigachat jina-v2-es jina-v2-de a.x-4.0 mellum "
              "modern-bert mpt "
              "olmo "
              "jais trillion granite-docling exaone4 ",
     .steps = {&gpt2}},
    {.names = "smollm starcoder refact command-r codeshell exaone minerva-7b mellum2 ",
     .steps = {&digit, &gpt2}},
    {.names = "llama3 llama-v3 llama-bpe falcon3 falcon-h1 pixtral midm-2.0 lfm2 ",
     .steps = {&llama3},
     .ignore_merges = true,
     .add_bos = true},
    {.names = "dbrx smaug-bpe ", .steps = {&llama3}},
    {.names = "chatglm-bpe ", .steps = {&llama3}, .no_bos = true},
    {.names = "glm4 glm5 ", .steps = {&llama3}, .no_bos = true, .ignore_merges = true},
    {.names = "qwen2 stablelm2 deepseek-r1-qwen kormo f2llmv2 megrez hunyuan solar-open grok-2 ",
     .steps = {&qwen2}},
    {.names = "qwen35 ", .steps = {&qwen35}},
    {.names = "ufakzeka ", .steps = {&ufakzeka}},
    {.names = "laguna ", .steps = {&lines, &qwen2}},
    {.names = "minicpm5 ", .steps = {&digits_by_3, &minicpm5}, .ignore_merges = true},
    {.names = "deepseek-llm ",
     .steps = {&newline, &deepseek_words, &deepseek_punctuation, &deepseek_spaces,
               &deepseek_cjk_words, &digits}},
    {.names = "deepseek-coder ",
     .steps = {&newline, &coder_words, &coder_punctuation, &deepseek_cjk_words, &digit}},
    {.names = "deepseek-v3 hunyuan-dense joyai-llm hy_v4 ",
     .steps = {&digits_by_3, &cjk, &deepseek3}},
    {.names = "spark2_5 ", .steps = {&digits_by_3, &cjk, &spark, &digit}},
    {.names = "falcon ", .steps = {&falcon_punctuation, &gpt2, &ascii_digits_3}},
    {.names = "poro-chat bloom gpt3-finnish ", .steps = {&bloom}},
    {.names = "viking ", .steps = {&bloom, &digit}},
    {.names = "tekken ", .steps = {&tekken}, .ignore_merges = true, .add_bos = true},
    {.names = "gpt-4o llama4 kanana2 talkie minimax-m2 ", .steps = {&gpt4o}},
    {.names = "granite-embed-multi-97m ", .steps = {&granite}, .ignore_merges = true},
    {.names = "bailingmoe bailingmoe2 llada-moe ", .steps = {&bailing}},
    {.names = "seed-coder ", .steps = {&seed_coder}},
    {.names = "exaone-moe ", .steps = {&exaone_moe}},
    {.names = "chameleon ",
     .steps = {&sentinels, &images, &blanks, &digit, &single_marks, &gpt2},
     .add_bos = true},
};

static bool has_name(const char *names, const char *name, size_t len)
{
    for (const char *end; (end = strchr(names, ' ')); names = end + 1)
        if ((size_t)(end - names) == len && memcmp(names, name, len) == 0)
            return true;
    return false;
}

const struct nb_pre *nb_pre_find(const char *name, size_t len)
{
    for (size_t i = 0; i < sizeof(families) / sizeof(*families); i++)
        if (has_name(families[i].names, name, len))
            return &families[i];
    return NULL;
}
